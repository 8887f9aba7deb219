"""Output of commands: tables and lines for a person, one JSON document for a script (``--json``).

Text from control and nodes may contain anything, so control characters are kept from the terminal.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from control.cli.support.client import Failure, Json

PLAIN_WIDTH = 240
"""Width of the output if it isn't a terminal, so that nothing is cut off in a file or a pipe."""
DIRECTIONS = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that change the direction of the following text, so that it reads as a different one."""
Columns = Mapping[str, str | Callable[[Json], object]]
"""The columns of a list by heading: a field of an item, or a function of the item."""
_CONTROL = {c: "\ufffd" for c in (*range(0x20), *range(0x7F, 0xA0), *DIRECTIONS) if c not in (0x09, 0x0A)}
_LEVEL = re.compile(r"^<\d>")


def clean(value: object) -> str:
    """Return the text of a value with its control characters replaced, so that it can't control a terminal."""
    return str(value).translate(_CONTROL)


def console(*, error: bool = False) -> Console:
    """Return a console on stdout, or with `error` on stderr, as they are now."""
    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def say(text: str, style: str | None = None) -> None:
    """Print a line of the answer, to stdout."""
    console().print(clean(text), style=style, soft_wrap=True)


def note(text: str, style: str | None = None) -> None:
    """Print a line to stderr, so that it never mixes with what a script reads."""
    console(error=True).print(clean(text), style=style, soft_wrap=True)


def logged(line: str) -> str:
    """Return a line of a function's log without the level before it: what a person reads has it in other ways."""
    return _LEVEL.sub("", line)


def document(value: object) -> None:
    """Print a value as one JSON document, to stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def json_line(value: object) -> None:
    """Print a value as a line of JSON, to stdout."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print a table, or the line `empty` if there are no rows."""
    listed = list(rows)
    if not listed:
        say(empty)
        return
    console().print(drawn_table(columns, listed))


def drawn_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table to be printed, or redrawn in a terminal; an empty cell is `-`."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(clean("-" if cell is None or cell == "" else cell) for cell in row))
    return shown


def listed(items: Iterable[Json], columns: Columns, empty: str, *, as_json: bool) -> None:
    """Print a list: one JSON document, or a table of these columns, or the line `empty` if it has no items."""
    if as_json:
        document(items)
        return
    rows = [[item[of] if isinstance(of, str) else of(item) for of in columns.values()] for item in items]
    table(list(columns), rows, empty)


def shown(item: Json, details: Callable[[Json], Iterable[tuple[str, object]]], *, as_json: bool) -> None:
    """Print one item: as one JSON document, or as the names and values that `details` returns for it."""
    document(item) if as_json else pairs(details(item))


def answered(answer: object, line: str, *, as_json: bool) -> None:
    """Print the result of a command: as one JSON document, or as a line."""
    document(answer) if as_json else say(line)


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Print names with their values, one per line."""
    console().print(drawn_pairs(rows))


def drawn_pairs(rows: Iterable[tuple[str, object]]) -> Table:
    """Return names with their values to be printed, or redrawn in a terminal."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(name, clean("-" if value is None or value == "" else value))
    return shown


def ago(time: str | None, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 time was, or how far away it is; `now` within a second, `never` for none."""
    if not time:
        return "never"
    seconds = seconds_since(time, now)
    if abs(seconds) < 1:
        return "now"
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def seconds_since(time: str, now: datetime | None = None) -> float:
    """Return the seconds since an RFC 3339 time, by this machine's clock."""
    return ((now or datetime.now(UTC)) - when(time)).total_seconds()


def passed(time: str) -> bool:
    """Return whether an RFC 3339 time has passed, by this machine's clock."""
    return when(time) <= datetime.now(UTC)


def span(seconds: float) -> str:
    """Return a duration as text: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def latency(time: float | None) -> str:
    """Return the time of a call as text: 340 µs, 12 ms, 1.4 s; `-` for none."""
    if time is None:
        return "-"
    if time < 0.001:
        return f"{time * 1e6:.0f} µs"
    return f"{time * 1000:.{0 if time >= 0.01 else 1}f} ms" if time < 1 else f"{time:.1f} s"


def when(time: str) -> datetime:
    """Parse an RFC 3339 time from control."""
    return datetime.fromisoformat(time.replace("Z", "+00:00"))


def rfc3339(time: datetime) -> str:
    """Return a time as text for control."""
    return time.isoformat().replace("+00:00", "Z")


def size(count: int) -> str:
    """Return a number of bytes as text: 17 B, 3.4 KiB, 1.0 MiB."""
    return f"{count} B" if count < 1024 else f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def functions(items: Iterable[dict[str, Any]]) -> str:
    """Return a release's functions as text: NAME@VERSION, with spaces between them."""
    return " ".join(f"{f['name']}@{f['version']}" for f in items)


def failure(error: Failure, *, as_json: bool) -> None:
    """Print an error and its cure to stderr; with `as_json`, a JSON object with message, code, field and exit code."""
    if as_json:
        told = {"message": str(error), "code": error.code, "field": error.field, "exit": error.exit_code}
        sys.stderr.write(orjson.dumps({"error": told}).decode() + "\n")
        return
    notes = [text for text in (error.code, error.field and f"field {error.field}") if text]
    note(f"Error: {error}" + (f" [{', '.join(notes)}]" if notes else ""), style="red")
    if error.cure:
        note(f"  {error.cure}")
