"""`skerry-edge sql`: shows, exports and fixes a node's rows, and has that recorded."""

import base64
import contextlib
import csv
import os
import pwd
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import click
import orjson

from control.protocol import wire
from control.protocol.command_line import DurationType
from control.protocol.counts import counted
from edge_runtime import database_users, wal
from edge_runtime.cli.support import STATE, check_owner, fail
from edge_runtime.errors import CodedError
from edge_runtime.ipc.frames import COMMIT_UNKNOWN
from edge_runtime.settings import WAL_LIMIT
from edge_runtime.state import KEPT_BY_A_RECORD, give_up_reserve
from edge_runtime.sync.sql_runs import SqlRunRecord

if TYPE_CHECKING:
    from edge_runtime.oneshot.sql_command import SqlEvent

TABLE_ROWS: Final = 1000
"""The most rows shown as a table: its columns are as wide as their widest value."""
CELL: Final = 120
"""Characters of a value that a table shows."""
_CONTROL: Final = dict.fromkeys((*range(32), *range(127, 160)), "�")


@click.command()
@click.argument("statement", required=False)
@STATE
@click.option("--write", is_flag=True, help="The SQL may change rows, in one transaction, under the writer lock.")
@click.option("--reason", default="", help="Why: recorded. --write needs it.")
@click.option(
    "--param", "params", multiple=True, metavar="VALUE", help="Value for a ?: JSON, or text where it is none."
)
@click.option("--json", "form", flag_value="json", help="A JSON document for each statement, one a line.")
@click.option("--csv", "form", flag_value="csv", help="CSV with a head; a BLOB in hex, a NULL empty.")
@click.option(
    "--time-limit",
    type=DurationType(0.1, 86_400, plain=True),
    default="60s",
    show_default=True,
    help="How long it may take, with all of its output.",
)
@click.option(
    "--wal-limit",
    envvar="SKERRY_EDGE_WAL_LIMIT",
    type=click.IntRange(min=1),
    default=WAL_LIMIT,
    show_default=True,
    metavar="BYTES",
    help="The node's limit of its write-ahead log: nothing is written while the log has so much.",
)
def sql(
    statement: str | None,
    state: Path,
    write: bool,
    reason: str,
    params: tuple[str, ...],
    form: str | None,
    time_limit: float,
    wal_limit: int,
) -> None:
    """Run SQL on the node's database, while the node serves or while it doesn't. STATEMENT, or what comes on stdin, may
    be several statements with semicolons: they are one transaction.

    It reads alone without --write. It never touches the runtime's own tables (_skerry_…), and never changes the schema:
    schema changes do. The SQL, the reason, the user and the number of rows are recorded in the node's log and in
    control's audit log; the values of --param are not.

    Exits 0 if all of it ran, 1 if not: nothing was changed then.
    """
    as_json = form == "json"
    text = statement if statement is not None else sys.stdin.read()
    if write and not reason.strip():
        raise click.UsageError("--write needs --reason: it is recorded")
    check_owner(state, as_json)
    from edge_runtime.oneshot.database_guard import GuardFailed, guarded
    from edge_runtime.oneshot.sql_command import SqlFailed, run, split

    state = state.absolute()
    statements = split(text)
    if not statements:
        raise click.UsageError("there is no SQL: give a STATEMENT, or SQL on stdin")
    if params and len(statements) > 1:
        raise click.UsageError("--param is for one statement alone")
    if not (state / wal.FILE).exists():
        raise fail("database_missing", f"{state / wal.FILE} isn't there: the node has not run yet", as_json)
    if write:
        with contextlib.suppress(OSError):
            give_up_reserve(state, KEPT_BY_A_RECORD)
    output: _Output = _Json() if as_json else _Csv() if form == "csv" else _Table()
    values = [_value(p) for p in params]
    try:
        with (
            guarded(state / wal.FILE, reading=False),
            _recorded(state, "write" if write else "read", text.strip(), reason.strip()) as count,
            # If Ctrl-C or the reader of the output interrupts it, its process is killed before anything else.
            contextlib.closing(
                run(state, statements, values, write=write, seconds=time_limit, wal_limit=wal_limit)
            ) as events,
        ):
            # Writes are shown once they are committed, rows as they are read.
            for event in _noted(events, count, write=write) if not write else list(_noted(events, count, write=write)):
                if event.columns is not None:
                    output.begin(event.columns)
                elif event.rows is not None:
                    output.rows(event.rows)
                elif event.changed is not None:
                    output.end(event.changed, write)
    except SqlFailed as failed:
        holder = database_users.lock_holder(state / wal.FILE) if failed.code == "database_held" else None
        raise output.fail(failed.code, failed.message + (f" It is held by {holder}." if holder else "")) from None
    except GuardFailed as failed:
        raise fail(failed.code, f"the database can't be opened: {failed}", as_json) from None
    except TimeoutError:
        text = f"it took longer than {time_limit:g} s, and nothing was changed (--time-limit)"
        raise output.fail("time_limit", text) from None


class _RunCount:
    rows = 0
    """Rows that were read, or changed."""
    done = False
    committing = False


def _noted(events: "Iterator[SqlEvent]", count: _RunCount, *, write: bool) -> "Iterator[SqlEvent]":
    for event in events:
        count.done = count.done or event.done
        count.committing = count.committing or event.committing
        count.rows += event.changed or 0
        count.rows += 0 if write else len(event.rows or ())
        yield event


@contextlib.contextmanager
def _recorded(state: Path, kind: Any, statement: str, reason: str) -> Iterator[_RunCount]:
    """Record what the block does. Raises: click's, when no record can be kept; then nothing is done."""
    run = wire.SqlRun(str(uuid4()), datetime.now(UTC), _user(), kind, statement, reason)
    try:
        record = SqlRunRecord(state, run)
    except OSError as error:
        raise fail("state_unusable", f"the record of this can't be kept, so it isn't done: {error}", False) from None
    count = _RunCount()
    try:
        yield count
    except CodedError as failed:
        count.committing = failed.code == COMMIT_UNKNOWN
        raise
    finally:
        with contextlib.suppress(OSError):
            if count.done or (count.rows and kind == "read"):
                record.end(count.rows)
            elif count.committing:
                record.end(None)
            else:
                record.drop()


def _user() -> str:
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "unknown"
    by = os.environ.get("SUDO_USER", "")
    return f"{name} (user id {uid}{f', by sudo from {by}' if by else ''})"


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


class _Output:
    def begin(self, columns: list[str]) -> None:
        """Begin the rows of a statement."""

    def rows(self, rows: list[list[Any]]) -> None:
        """Write rows of the statement."""

    def end(self, changed: int, write: bool) -> None:
        """End a statement."""

    def fail(self, code: str, message: str) -> click.exceptions.Exit:
        """Finish early: nothing more follows."""
        return fail(code, message, as_json=False)


class _Json(_Output):
    """One document per statement, written as rows arrive."""

    def __init__(self) -> None:
        self._began = False
        self._any = False

    def begin(self, columns: list[str]) -> None:
        sys.stdout.write('{"columns":' + orjson.dumps(columns).decode() + ',"rows":[')
        self._began, self._any = True, False

    def rows(self, rows: list[list[Any]]) -> None:
        sys.stdout.write(("," if self._any else "") + orjson.dumps(rows).decode()[1:-1])
        self._any = True

    def end(self, changed: int, write: bool) -> None:
        sys.stdout.write(("]," if self._began else "{") + f'"changed":{changed}}}\n')
        self._began = False

    def fail(self, code: str, message: str) -> click.exceptions.Exit:
        # A document that was begun stays incomplete.
        error = orjson.dumps({"error": {"code": code, "message": message}}).decode()
        sys.stdout.write(("\n" if self._began else "") + error + "\n")
        return click.exceptions.Exit(1)


class _Csv(_Output):
    def __init__(self) -> None:
        self._writer = csv.writer(sys.stdout)

    def begin(self, columns: list[str]) -> None:
        self._writer.writerow(columns)

    def rows(self, rows: list[list[Any]]) -> None:
        self._writer.writerows([_plain(value) for value in row] for row in rows)

    def end(self, changed: int, write: bool) -> None:
        if write:
            click.echo(f"{counted(changed, 'row')} changed", err=True)


class _Table(_Output):
    def __init__(self) -> None:
        self._columns: list[str] = []
        self._rows: list[list[str]] = []
        self._count = 0

    def begin(self, columns: list[str]) -> None:
        self._columns, self._rows, self._count = columns, [], 0

    def rows(self, rows: list[list[Any]]) -> None:
        self._count += len(rows)
        room = TABLE_ROWS - len(self._rows)
        self._rows += [[_cell(value) for value in row] for row in rows[:room]]

    def end(self, changed: int, write: bool) -> None:
        if self._columns:
            heads = [_cell(column) for column in self._columns]
            widths = [max(map(len, column)) for column in zip(heads, *self._rows, strict=True)]
            for line in (heads, ["-" * width for width in widths], *self._rows):
                click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            left = self._count - len(self._rows)
            cut = f", {left:,} of them not shown: use --csv or --json" if left else ""
            click.echo(f"{counted(self._count, 'row')}{cut}")
        if write:
            click.echo(f"{counted(changed, 'row')} changed")
        self._columns = []


def _plain(value: Any) -> Any:
    """Return a value that JSON lacks as text: bytes in hex, Inf or -Inf."""
    if not isinstance(value, dict):
        return value
    return base64.b64decode(value["$blob"]).hex() if "$blob" in value else value["$real"]


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    text = f"x'{_plain(value)}'" if isinstance(value, dict) and "$blob" in value else str(_plain(value))
    text = text.translate(_CONTROL)
    return text if len(text) <= CELL else text[: CELL - 1] + "…"
