"""`skerry logs` and `skerry calls`: what functions and nodes log, and slow and failed calls."""

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from control.cli.support import options, output, record_stream
from control.cli.support.client import Json, connection_settings
from control.protocol.counts import counted

F = TypeVar("F", bound=Callable[..., Any])

COLORS = {"debug": "2", "warning": "33", "error": "31"}
"""ANSI colors of the levels if stdout is a terminal."""
STEPS = ("queue", "lock", "guest", "sql", "http", "commit")
"""The steps of a call that take time, in the order in which they are shown."""
_VISIBLE = {c: f"\\x{c:02x}" for c in (*range(0x20), *range(0x7F, 0xA0))} | {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
# Characters that end lines or change the text direction.
_VISIBLE |= {c: f"\\u{c:04x}" for c in (0x2028, 0x2029, *output.DIRECTIONS)}


def shared_options(function: F) -> F:
    for option in reversed(
        (
            click.option("--node", type=options.NAME, help="Only of this node."),
            click.option("--group", type=options.NAME, help="Only of the nodes of this group."),
            click.option("--function", type=options.NAME, help="Only of this function."),
            click.option("--json", "as_json", is_flag=True, help="Print each record as a line of JSON."),
        )
    ):
        function = option(function)
    return function


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes; without --since, only with that.")
@shared_options
@click.option(
    "--level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="debug",
    show_default=True,
    help="Only of this level, or above.",
)
@click.option("--since", type=options.TIME, help="From this time on (2026-11-27T18:00, or 2d, 3h, 30m ago).")
@click.option("--call", help="Only what the call with this id has logged (X-Request-Id of its answer).")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=200,
    show_default=True,
    help="The newest so many of what is there already.",
)
@options.asynchronous
async def command(
    follow: bool,
    node: str | None,
    group: str | None,
    function: str | None,
    level: str,
    since: datetime | None,
    call: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show what functions and nodes have logged, of one node or of all.

    It is asked of the nodes themselves, which keep some of their log on their disks: those that are offline are named.
    """
    query = _query("lines", node, group, function, since, limit, level=level, call=call)
    if follow:
        query["follow"] = "true"
    await _show(query, limit, _as_it_is if as_json else _line, waits=since is not None or not follow)


@click.command()
@shared_options
@click.option("--failed", is_flag=True, help="Only calls that failed.")
@click.option("--slowest", is_flag=True, help="The slowest calls, rather than the newest.")
@click.option("--since", type=options.TIME, default="1d", help="From this time on (default: a day ago).")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="So many calls.")
@options.asynchronous
async def calls(
    node: str | None,
    group: str | None,
    function: str | None,
    as_json: bool,
    failed: bool,
    slowest: bool,
    since: datetime,
    limit: int,
) -> None:
    """Show the slow and the failed calls, with where their time went and what they logged.

    Nodes keep these calls on their disks, not all calls: those that are offline are named.
    """
    query = _query("calls", node, group, function, since, limit)
    query |= {name: "true" for name, on in (("failed", failed), ("slowest", slowest)) if on}
    found, lines = await _gathered(query)
    made = [record for record in found if record["kind"] == "call"]
    made.sort(key=(lambda record: record.get("seconds", 0.0)) if slowest else (lambda record: str(record["t"])))
    made = made[-limit:][::-1]
    for record in made:
        own = [line for line in lines if line["call"] == record.get("call") and line["node"] == record["node"]]
        if as_json:
            output.json_line({**record, "log": own})
        else:
            _write(_call(record, own))
    if not made and not as_json:
        output.say("no slow or failed calls")


def _query(
    kind: str,
    node: str | None,
    group: str | None,
    function: str | None,
    since: datetime | None,
    limit: int,
    **more: str | None,
) -> dict[str, str | int | None]:
    if node is not None and group is not None:
        raise click.UsageError("--node is of one group: give --node or --group")
    times = {"since": None if since is None else since.isoformat()}
    return {"kind": kind, "node": node, "group": group, "function": function, "limit": limit, **times, **more}


async def _show(
    query: dict[str, str | int | None], limit: int, text: Callable[[Json, bytes], str], *, waits: bool
) -> None:
    """Print records: existing ones, by time, as soon as all of them are known; then new ones as they arrive."""
    past: list[tuple[str, Json, bytes]] = []
    async with record_stream.RecordClient(connection_settings()) as control:
        async for part in record_stream.parts(control, query):
            if part.notice is not None:
                _tell(part.notice)
                if part.notice["notice"] == "history" and waits:
                    waits = False
                    past.sort(key=lambda found: found[0])
                    _write("".join(text(record, raw) for _, record, raw in past[-limit:]))
                    past.clear()
            elif part.record is not None:
                if waits:
                    past.append((part.record["t"], part.record, part.raw))
                else:
                    _write(text(part.record, part.raw))


async def _gathered(query: dict[str, str | int | None]) -> tuple[list[Json], list[Json]]:
    """Return the calls, and the lines about them from their own logs and the logs of nodes."""
    found: list[Json] = []
    async with record_stream.RecordClient(connection_settings()) as control:
        async for part in record_stream.parts(control, query):
            if part.notice is not None:
                _tell(part.notice)
            elif part.record is not None:
                found.append(part.record)
    lines = [record for record in found if record["kind"] != "call" and record.get("call")]
    return found, sorted(lines, key=lambda line: str(line["t"]))


def _tell(notice: Json) -> None:
    """Print to stderr what is missing."""
    count, names = notice.get("count", 0), notice.get("nodes", [])
    some = ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) > 0 else "")
    nodes, have = counted(count, "node is", "nodes are"), counted(count, "node has", "nodes have")
    did, records = counted(count, "node"), counted(count, "record was", "records were")
    lines = counted(count, "line of nodes wasn't a record", "lines of nodes weren't records")
    texts = {
        "offline": f"{nodes} offline or revoked and {'was' if count == 1 else 'were'} not asked: {some}",
        "too_old": f"{have} a version of skerry-edge that can't be asked: {some}",
        "silent": f"{did} didn't answer in time" + (f": {some}" if some else ""),
        "sampled": f"{records} left out, evenly: there are too many to show them all",
        "dropped": f"{records} left out: they came faster than they were read here",
        "left_out": f"{have} older records that aren't shown (--limit)",
        "invalid": lines,
    }
    text = texts.get(notice["notice"])
    if text is not None:
        output.note(text, style="yellow")


def escaped(value: object) -> str:
    """Return the text of a value on one line, with terminal control characters as escapes."""
    return str(value).translate(_VISIBLE)


def _as_it_is(_record: Json, raw: bytes) -> str:
    return raw.decode() + "\n"


def _line(record: Json, _raw: bytes) -> str:
    level = record.get("level", "info")
    whose = _function(record) if record["kind"] == "log" else "skerry-edge"
    # The node's own lines include it in their text.
    call = f" [{record['call']}]" if record.get("call") and record["kind"] == "log" else ""
    text = escaped(f"{record['t']} {level:7} {record['node']} {whose}{call} {record.get('message', '')}")
    return _colored(text, COLORS.get(level, "")) + "\n"


def _call(record: Json, lines: list[Json]) -> str:
    ended = record.get("outcome", "ok")
    status = record.get("status") or ""
    head = f"{record['t']} {record['node']} {_function(record)} {record.get('method', '')} {record.get('path', '')}"
    head += f" {status} {'' if ended == 'ok' else ended + ' '}{_seconds(record.get('seconds', 0.0))}"
    head += f" [{record['call']}]" if record.get("call") else ""
    rows = [_colored(escaped(head), "" if ended == "ok" else COLORS["error"])]
    times = record.get("times", {})
    known = [
        f"{name} {_seconds(times[name])}" for name in (*STEPS, *sorted(times.keys() - set(STEPS))) if times.get(name)
    ]
    if known:
        rows.append("    " + escaped(", ".join(known)))
    for statement in record.get("sql", []):
        count = statement.get("count", 1)
        often = f" ({count} times)" if count > 1 else ""
        text = " ".join(statement["statement"].split())
        told = f"{_seconds(statement.get('seconds', 0.0))} for {text}{often}"
        rows.append("    " + escaped(told))
    for request in record.get("http", []):
        where = request.get("url") or request.get("host", "")
        told = f"{request.get('method', '')} {where} {request.get('status') or ''}"
        rows.append("    " + escaped(f"{_seconds(request.get('seconds', 0.0))} for {' '.join(told.split())}"))
    for line in lines:
        text = escaped(f"{line['t']} {line.get('level', 'info'):7} {line.get('message', '')}")
        rows.append("    " + _colored(text, COLORS.get(line.get("level", ""), "")))
    return "\n".join(rows) + "\n"


def _function(record: Json) -> str:
    return f"{record.get('function', '')}@{record['version']}" if record.get("version") else record.get("function", "")


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def _colored(text: str, color: str) -> str:
    return (
        f"\x1b[{color}m{text}\x1b[0m"
        if color and output.console().is_terminal and not output.console().no_color
        else text
    )


def _write(text: str) -> None:
    """Print to stdout and flush at once: someone who follows a log is waiting for it."""
    sys.stdout.write(text)
    sys.stdout.flush()
