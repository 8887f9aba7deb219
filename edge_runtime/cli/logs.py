"""`skerry-edge logs`: the logs of its functions and its own log, as far as a node has kept them, read on the node
itself."""

import contextlib
import re
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import orjson

from control.protocol.command_line import old_option
from edge_runtime.cli.support import STATE, check_owner, fail
from edge_runtime.logs import printable
from edge_runtime.telemetry import records
from edge_runtime.telemetry.ring import FOLDER
from edge_runtime.telemetry.search import MOST, Follower, LineFilter, search

LINES: Final = 100
"""Lines that are shown if no start time is given."""
PAUSE: Final = 0.2
"""Seconds between two checks for new lines."""
_AGO: Final = re.compile(r"(\d{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LEVELS: Final = {**{level: level for level in records.LEVELS}, "warn": "warning"}


class Moment(click.ParamType[float]):
    """A time, as Unix seconds: given as an age (`10m`) or in RFC 3339 form."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = _AGO.fullmatch(value)
        if found:
            return time.time() - int(found[1]) * _SECONDS[found[2]]
        try:
            return datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is neither as 30s, 10m, 2h or 7d nor a time as 2026-11-28T06:00:00Z", param, ctx)


@click.command("logs")
@STATE
@click.option("--follow", "-f", is_flag=True, help="Go on with lines as they come, until Ctrl-C.")
@click.option("--since", type=Moment(), metavar="TIME", help="From then on: 10m (ago), or 2026-11-28T06:00:00Z.")
@click.option("--until", type=Moment(), metavar="TIME", help="Before then, likewise.")
@click.option("--function", "function", default="", help="Of this function.")
@click.option("--level", type=click.Choice(sorted(LEVELS)), default="debug", help="This level, and those above it.")
@click.option("--call", "request_id", default="", metavar="ID", help="Of the call with this x-request-id.")
@click.option("--kind", type=click.Choice(["", *records.KINDS]), default="", help="Functions', calls', the node's.")
@click.option("--limit", "-n", type=click.IntRange(1, MOST), help=f"The last so many (default: {LINES}, or {MOST}).")
@click.option("--json", "as_json", is_flag=True, help="Print each line as it is kept: one JSON object.")
@old_option("--lines", "--limit", type=click.IntRange(1, MOST))
def logs(
    state: Path,
    follow: bool,
    since: float | None,
    until: float | None,
    function: str,
    level: str,
    request_id: str,
    kind: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show what the node in this state directory has kept of its functions' logs and of its own, whether it runs or
    not: the last 100 lines, or with --since or --call all, 10,000 at most.

    Exits 0, also where nothing is found.
    """
    check_owner(state, as_json, or_root=True)
    folder = state / FOLDER
    kinds, calls = (kind,) if kind else (), (request_id,) if request_id else ()
    wanted = LineFilter(since, until, kinds, function, LEVELS[level], calls)
    narrow = since is not None or until is not None or request_id
    try:
        # From before the search, so that no line is lost in between; lines that both find are shown once.
        follower = Follower(folder) if follow else None
        found = search(folder, wanted, limit or (MOST if narrow else LINES))
        if found.more and narrow:
            click.echo(f"There are older lines too; these are the last {len(found.lines)}.", err=True)
        show_lines(found.lines, as_json)
        if follower is not None:
            _follow(follower, wanted, set(found.lines[-LINES:]), as_json)
    except BrokenPipeError:
        raise  # the reader of the output, such as `head`, has closed it
    except OSError as error:
        raise fail("state_unusable", f"the records in {folder} can't be read: {error}", as_json) from None


def _follow(follower: Follower, wanted: LineFilter, shown: set[bytes], as_json: bool) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            show_lines((line for line in follower.lines(wanted) if line not in shown), as_json)
            shown = set()
            time.sleep(PAUSE)


def show_lines(lines: Iterable[bytes], as_json: bool) -> None:
    """Print lines of the ring."""
    for line in lines:
        sys.stdout.write((line.decode() if as_json else text_of(orjson.loads(line))) + "\n")
    sys.stdout.flush()


def text_of(record: dict[str, Any]) -> str:
    """Return a record as one readable line. What functions and clients wrote can't control a terminal."""
    who = " ".join(str(record[name]) for name in ("function", "version", "call") if record.get(name))
    message = record.get("message", "")
    if record.get("kind") == records.CALL:
        seconds = record.get("seconds")
        took = f" after {seconds:.3f} s" if isinstance(seconds, int | float) else ""
        message = f"{record.get('method')} {record.get('path')}: {record.get('status')} {record.get('outcome')}{took}"
    level = str(record.get("level", record.get("kind", ""))).upper()
    return printable(f"{record.get('t')} {level:7} {who or 'node'}: {message}")
