"""`skerry-edge calls`: a node's slowest calls and those that failed, read on the node itself."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import orjson

from control.protocol.command_line import old_option
from edge_runtime.cli.logs import Moment, show_lines
from edge_runtime.cli.support import STATE, check_owner, fail
from edge_runtime.logs import printable
from edge_runtime.telemetry import records
from edge_runtime.telemetry.ring import FOLDER
from edge_runtime.telemetry.search import MOST, LineFilter, search

HOUR: Final = 3600.0
LINES: Final = 20
"""Calls that are shown by default."""
PARTS: Final = ("queue", "lock", "guest", "sql", "http", "commit")
"""The columns of a call's times; if its worker reported nothing more, all of its time there is under `guest`."""


@click.command("calls")
@STATE
@click.option(
    "--since", type=Moment(), metavar="TIME", help="From then on: 10m (ago), or a time; an hour if not given."
)
@click.option("--until", type=Moment(), metavar="TIME", help="Before then, likewise.")
@click.option("--function", default="", help="Of this function.")
@click.option("--failed", is_flag=True, help="Only those that failed, the latest first.")
@click.option("--call", "request_id", default="", metavar="ID", help="The call with this x-request-id, and its log.")
@click.option("--limit", "-n", type=click.IntRange(1, MOST), default=LINES, show_default=True, help="So many calls.")
@click.option("--json", "as_json", is_flag=True, help="Print each call as it is kept: one JSON object.")
@old_option("--lines", "--limit", type=click.IntRange(1, MOST))
def calls(
    state: Path,
    since: float | None,
    until: float | None,
    function: str,
    failed: bool,
    request_id: str,
    limit: int,
    as_json: bool,
) -> None:
    """Show the slowest calls of the node in this state directory and those that failed, the slowest first, whether it
    runs or not; and where their time went.

    A call is kept if it failed, or took longer than all but sixteen of its function's calls of the hour. Exits 0, also
    where nothing is found.
    """
    check_owner(state, as_json, or_root=True)
    if since is None and not request_id:
        since = time.time() - HOUR
    wanted = LineFilter(since, until, (records.CALL,), function, calls=(request_id,) if request_id else ())
    try:
        found = search(state / FOLDER, wanted, MOST).lines
        of_call = wanted._replace(kinds=(records.LOG, records.NODE))
        logged = search(state / FOLDER, of_call, MOST).lines if request_id else []
    except OSError as error:
        raise fail("state_unusable", f"the records in {state / FOLDER} can't be read: {error}", as_json) from None
    kept = [(orjson.loads(line), line) for line in found]
    if failed:
        kept = [(record, line) for record, line in reversed(kept) if record.get("outcome") != "ok"]
    else:
        kept.sort(key=lambda pair: -_number(pair[0].get("seconds")))
    if as_json:
        show_lines([*(line for _, line in kept[:limit]), *logged], as_json=True)
        return
    shown = [record for record, _ in kept[:limit]]
    sys.stdout.write(table(shown))
    if request_id:
        for record in shown:
            sys.stdout.write(steps(record))
        show_lines(logged, as_json=False)
    sys.stdout.flush()


def table(shown: Sequence[dict[str, Any]]) -> str:
    """Return records of calls as a table, with times in milliseconds. What clients wrote can't control a terminal."""
    if not shown:
        return "no calls are kept\n"
    heads = ("ended", "function", "release", "outcome", "ms", *PARTS, "call", "request")
    rows = [heads, *(_cells(record) for record in shown)]
    numbers = range(heads.index("ms"), heads.index("call"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = (
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"


def steps(record: dict[str, Any]) -> str:
    """Return the statements and the HTTP requests of a call, one per line."""
    lines = [
        f"  {_milliseconds(step.get('seconds')):>9} ms  {step.get('count')} x {name} {printable(str(step.get(what)))}\n"
        for name, what in (("sql", "statement"), ("http", "host"))
        for step in record.get(name) or []
    ]
    return "".join(lines)


def _cells(record: dict[str, Any]) -> tuple[str, ...]:
    times = record.get("times") or {}
    if "worker" in times:
        times = {**times, "guest": times["worker"]}
    made = (
        record.get("t"),
        f"{record.get('function')} {record.get('version')}",
        record.get("release"),
        record.get("outcome"),
        _milliseconds(record.get("seconds")),
        *(_milliseconds(times[part]) if part in times else "" for part in PARTS),
        record.get("call"),
        f"{record.get('method')} {record.get('path')}",
    )
    return tuple(printable(str(cell)) for cell in made)


def _milliseconds(seconds: object) -> str:
    return f"{_number(seconds) * 1000:.1f}"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
