"""Runs SQL on a node's libsql file for `skerry-edge sql`, in one transaction, behind the fence of a worker.

A statement may touch the same things as a function's statement (`sql.access`): not the runtime's own tables, and not
the schema. Events are yielded one by one, so that a result can have any size.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec import Struct

from control.protocol.counts import counted
from edge_runtime import wal
from edge_runtime.errors import CodedError
from edge_runtime.oneshot.forked import forked_lines
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, WRITE
from edge_runtime.sql import database, values
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.libsql_connection import is_panic
from edge_runtime.sql.queries import GenerationRow, load
from edge_runtime.sql.session import PreparedStatement, Session, SqlError, code_of_error, failed_commit
from edge_runtime.sql.tokenizer import at_semicolons, tokenize
from edge_runtime.state import RESERVE, give_up_reserve

TEMP_BYTES: Final = 1024 * 1024 * 1024
"""The most bytes of each temporary file, and of one transaction in the log."""
LOG_WAIT: Final = 5.0
"""Seconds for which a transaction that writes waits while the write-ahead log is at its limit."""
BATCH: Final = 64
"""Rows that are passed on at once."""
_READ_GENERATION: Final = load("read_generation")


class SqlFailed(CodedError):
    """The SQL can't be run. Nothing was changed, unless the code is `commit_unknown`."""


class SqlEvent(Struct, omit_defaults=True):
    """Something that happened: one of the fields has a value."""

    waiting: bool = False
    """The process is waiting for the writer lock."""
    committing: bool = False
    """From here on the process must not be killed: it would be unknown whether the writes are kept."""
    columns: list[str] | None = None
    """A statement begins to return rows."""
    rows: list[list[Any]] | None = None
    """Rows of the statement; a BLOB is {"$blob": base64}."""
    changed: int | None = None
    """A statement has finished, and changed this number of rows itself."""
    done: bool = False
    """All statements have run, and their writes are on disk."""
    code: str = ""
    message: str = ""


def split(sql: str) -> list[str]:
    """Return the statements, without empty ones."""
    return [sql[tokens[0].start : tokens[-1].end] for tokens in at_semicolons(tokenize(sql))]


def run(
    state: Path, statements: Sequence[str], params: list[Any], *, write: bool, seconds: float, wal_limit: int
) -> Generator[SqlEvent]:
    """Run the statements in one transaction, read-only unless `write`; yield what happens. Only one statement may have
    `params`. No writing statement begins while the write-ahead log has `wal_limit` bytes. The caller must have only one
    thread, and keep the file open meanwhile (`database_guard`).

    Raises: SqlFailed, when it can't be done; TimeoutError, when it took longer than `seconds` before its COMMIT.
    """
    until = time.monotonic() + seconds
    committing = False

    def may_take() -> float | None:
        return None if committing else max(0.0, until - time.monotonic())

    def work(out: BinaryIO) -> None:
        if not write:
            # Its transaction keeps the log from restarting, even while nobody reads its results.
            signal.setitimer(signal.ITIMER_REAL, seconds)
        _work(state, statements, params, write, wal_limit, out)

    event = SqlEvent()
    try:
        for line in forked_lines(work, may_take):
            event = msgspec.json.decode(line, type=SqlEvent)
            if event.code:
                raise SqlFailed(event.code, event.message)
            committing = committing or event.committing
            yield event
    except TimeoutError:
        if not event.done and not committing:
            raise
    if not event.done:
        if committing:
            raise SqlFailed("commit_unknown", "The process ended in its COMMIT: nobody knows whether it is kept.")
        if time.monotonic() > until:
            raise TimeoutError
        raise SqlFailed("sql_failed", "The process that ran the SQL ended; nothing was changed.")


def _work(
    state: Path, statements: Sequence[str], params: list[Any], write: bool, wal_limit: int, out: BinaryIO
) -> None:
    def tell(event: SqlEvent) -> None:
        out.write(msgspec.json.encode(event) + b"\n")
        out.flush()

    os.environ["SQLITE_TMPDIR"] = str(state / wal.TEMPORARY)
    path = state / wal.FILE
    spare = [(file, WRITE)] if write and (file := state / RESERVE).exists() else []
    fence.enclose([(path.parent, WRITE), (state / wal.TEMPORARY, WRITE), RANDOM, *spare])
    try:
        opened = database.connect_until_exit(path, "FULL")
        fence.limit_files(TEMP_BYTES)
        opened.file_limit_was_hit = fence.file_limit_was_hit
        fence.seal("worker", opened.lock.fileno())
        if write:
            _wait_for_log(path, wal_limit)
        _run(opened, state, statements, params, write, tell)
        tell(SqlEvent(done=True))
    except database.DatabaseOpenError as error:
        tell(SqlEvent(code=error.code, message=f"{error}."))
    except CodedError as error:
        tell(SqlEvent(code=error.code, message=error.message))


def _wait_for_log(path: Path, limit: int) -> None:
    """Wait while the write-ahead log is at its limit, as calls do. Raises: SqlFailed, when it stays there."""
    until = time.monotonic() + LOG_WAIT
    while (size := wal.committed(path)) >= limit:
        if time.monotonic() > until:
            text = (
                f"The database's write-ahead log has {size >> 20} MiB, and its limit is {limit >> 20}: a "
                "reader doesn't end, or the disk is slow. Nothing was changed; try again."
            )
            raise SqlFailed("wal_full", text)
        time.sleep(0.02)


def _run(
    opened: LibsqlDatabase, state: Path, statements: Sequence[str], params: list[Any], write: bool, tell: Any
) -> None:
    """Run the statements in one transaction. Raises: SqlError, SqlFailed."""
    session = Session(opened)
    if write:
        tell(SqlEvent(waiting=True))
        opened.lock.acquire()
    try:
        if write:
            # Now no call can use up its space.
            with contextlib.suppress(OSError):
                give_up_reserve(state, 0)
        opened.set_query_only(not write)
        opened.rows("BEGIN IMMEDIATE" if write else "BEGIN")
        # What is known about the schema comes from this transaction.
        applied = opened.read(GenerationRow, _READ_GENERATION)
        session.at(applied[0].applied if applied else 0)
        for sql in statements:
            _statement(opened, session.statement(sql), params, write, tell)
        if write:
            tell(SqlEvent(committing=True))
            _commit(opened)
    except ValueError as error:
        raise SqlFailed(code_of_error(opened, error, "sql_failed"), f"{error}. Nothing was changed.") from None
    finally:
        opened.rollback()


def _statement(opened: LibsqlDatabase, statement: PreparedStatement, params: list[Any], write: bool, tell: Any) -> None:
    if statement.writes and not write:
        raise SqlError("not_granted", "The statement writes: give --write and --reason.")
    if len(params) != statement.count:
        text = f"The statement takes {counted(statement.count, 'parameter')}, and was given {len(params)} (--param)."
        raise SqlError("sql_parameters", text)
    bound, wide = values.bind(params, msgspec.json.encode({"params": params}))
    try:
        cursor = opened.connection.execute(statement.text(wide) if wide else statement.sql, bound)
        columns = [column[0] for column in cursor.description or ()]
        count = 0
        if columns:
            tell(SqlEvent(columns=columns))
            while rows := cursor.fetchmany(BATCH):
                count += len(rows)
                tell(SqlEvent(rows=[[shown_value(value) for value in row] for row in rows]))
        # libsql's count for RETURNING is taken before the rows are written, but each of them is returned as a row.
        tell(SqlEvent(changed=(count if columns else cursor.rowcount) if statement.writes else 0))
    except BaseException as panic:
        if not is_panic(panic):
            raise
        text = "A TEXT in the result is not valid UTF-8; select it as a BLOB (CAST (… AS BLOB))."
        raise SqlError("sql_value", text) from None


def shown_value(value: values.Value) -> Any:
    """Return a value in a form that JSON allows, which has neither bytes nor infinite numbers."""
    if isinstance(value, bytes):
        return {"$blob": value}
    return {"$real": "Inf" if value > 0 else "-Inf"} if isinstance(value, float) and math.isinf(value) else value


def _commit(opened: LibsqlDatabase) -> None:
    try:
        opened.rows("COMMIT")
    except ValueError as error:
        code, text = failed_commit(opened, error)
        raise SqlFailed(code, text) from None
