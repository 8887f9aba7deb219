"""The SQL of one call of a guest: JSON in, JSON out, one transaction.

A request is `{"sql": …, "params": […]}`; the answer is `{"columns", "rows", "changes", "last_id"}`, or `{"error":
{"code", "message"}}` (codes: docs/errors.md). `changes` counts the rows that the statement itself wrote; `last_id` is
the rowid of the last row that it inserted, or null. `values` defines how values are written, `access` what a statement
may touch.
"""

import contextlib
import time
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, NoReturn

import orjson

from control.protocol import faults
from control.protocol.counts import counted
from control.protocol.manifest import SqlGrant
from edge_runtime.errors import CodedError
from edge_runtime.ipc import call_times
from edge_runtime.ipc.call_times import StepClock
from edge_runtime.ipc.frames import COMMIT_UNKNOWN
from edge_runtime.sql import ticks, values
from edge_runtime.sql.database import LOCKED
from edge_runtime.sql.libsql_connection import LibsqlCursor, is_panic
from edge_runtime.sql.queries import GenerationRow, load
from edge_runtime.sql.session import PreparedStatement, Session, SqlError, code_of, code_of_error, failed_commit
from edge_runtime.sql.ticks import Tick
from edge_runtime.sql.values import Row
from edge_runtime.sql.writer_lock import WriteProgress

LIMITS: Final = ("sql_out_of_memory", "sql_disk_limit")
"""Codes for a statement that hit a limit. The function's caller gets these codes too, not only the guest."""
DENIED: Final = ("not_granted", "sql_not_allowed", "sql_closed")
_READ_GENERATION: Final = load("read_generation")
HELD_WAIT: Final = 2.0
"""Seconds that a call waits for a process that has the database locked without using the writer lock."""
HELD_PAUSE: Final = 0.005
_FIRST_ROWS: Final = 2
_FEW_ROWS: Final = 16
"""Rows that are fetched from libsql at once, first and later: an answer of one row is complete after the first fetch.
The byte limit is checked after each fetch, and until then each row may be as large as SQLite's heap."""
_NO_CHANGES: Final = b',"changes":0,"last_id":null}'


@dataclass(frozen=True)
class SqlLimits:
    request_bytes: int = 16 * 1024 * 1024
    answer_bytes: int = 8 * 1024 * 1024
    rows: int = 65_536


class StaleRelease(Exception):
    """The file holds another release than the call was made for. Nothing that the call did lasts, so it can be
    dispatched again."""


class WriteHeld(StaleRelease):
    """A release is being applied, and the call would have to wait for it before it may write. Nothing that the call did
    lasts, so it can be dispatched again once the release is there, or has failed."""


class CommitFailed(CodedError):
    """A COMMIT failed. Nothing that the call wrote was kept, unless the code is `frames.COMMIT_UNKNOWN`."""


class DatabaseHeld(CodedError):
    """A process outside the node, such as a shell or a backup, has the database locked. Nothing was changed."""


class CallSql:
    """The database as one call sees it. The first statement begins the transaction: deferred and query_only for the
    grant `read`; IMMEDIATE and under the writer lock for `write`. While a release is applied, a call with `write`
    begins like a reading call, and may run until it would write. After an error the transaction continues, unless
    SQLite has ended it."""

    def __init__(
        self,
        session: Session,
        grant: SqlGrant,
        generation: int,
        watch: WriteProgress | None = None,
        limits: SqlLimits = SqlLimits(),
        method: str = "",
        steps: StepClock | None = None,
        tick: Tick | None = None,
    ) -> None:
        """`method`: the call's method, if that is why a function that may write has the grant `read`; else empty.
        `steps` notes how long each statement, each wait and the COMMIT takes. `tick`: the tick that makes the
        call, if one does."""
        self._session = session
        self._tick = tick
        self._database = session.database
        self._grant = grant
        self._generation = generation
        self._watch = watch
        self._limits = limits
        self._method = method
        self._steps = steps or StepClock()
        self._begun = False
        self._writes = False
        """Whether the call's transaction is under the writer lock."""
        self._sent = False
        """Whether the call has sent something (an HTTP request) that must not be sent twice."""
        self._ended = ""
        """SQLite's message, once SQLite has ended the transaction."""
        self._ended_code = "transaction_ended"
        """The code that the function's caller gets once SQLite has ended the transaction."""
        self.limit_code = ""
        """The code of the limit that the call hit; empty if it hit none."""
        self.denied: dict[str, int] = {}
        """How many statements were refused because of what they would do, by code."""

    def execute(self, request: bytes) -> bytes:
        """Run one statement and return its answer; errors of the statement are in the answer.

        Raises: DatabaseHeld, StaleRelease, only at the first statement; WriteHeld, at the first one that writes.
        """
        try:
            sql, params = self._read(request)
            if not self._begun:
                self._begin()
            if self._ended:
                raise SqlError("transaction_ended", f"An error ended the call's transaction: {self._ended}")
            began = perf_counter()
            try:
                statement = self._session.statements.get(sql) or self._session.statement(sql)
                return self._run(statement, params, request)
            finally:
                self._steps.add(call_times.SQL, began, sql)
        except SqlError as error:
            if error.code in DENIED:
                self.denied[error.code] = self.denied.get(error.code, 0) + 1
            return orjson.dumps({"error": {"code": error.code, "message": str(error)}})

    def sending(self) -> None:
        """Note that the call is about to send something that must not be sent twice; from here on it can't be
        dispatched again. A reading call begins its transaction, if it hasn't yet, so that no later release affects it.
        A writing call will wait for the writer lock even while a release is applied; if one is being applied already,
        it may not send, since its writes would come too late.

        Raises: WriteHeld, when a release is being applied and the call may write.
        """
        watch = self._watch
        if self._grant == "write" and not self._sent and watch is not None:
            if self._begun and not self._writes:
                self._hold()
            if not self._begun:
                watch.sending()
                # Checked after the mark is set: the process that starts to apply a release looks for these marks
                # afterwards.
                if watch.applying:
                    watch.running()
                    raise WriteHeld
        self._sent = True
        if self._grant == "read" and not self._begun:
            # If the transaction can't begin now, the call's first statement tells the guest why.
            with contextlib.suppress(SqlError):
                self._begin()

    def commit(self, *, done: bool = True) -> None:
        """Commit what the call wrote, and that its tick has ended, if a tick makes the call and it may write; `done`:
        the tick ended well.

        Raises: CommitFailed, when SQLite refuses or has already ended the transaction, or the tick has ended before;
        WriteHeld, when the tick can't be written while a release is applied; DatabaseHeld, StaleRelease.
        """
        if self._tick is not None and self._grant == "write" and not self._ended:
            self._end_tick(self._tick, done)
        if not self._begun:
            return
        if self._ended:
            self.rollback()
            raise CommitFailed(self._ended_code, f"An error ended the call's transaction: {self._ended}")
        writes, began = self._writes, perf_counter()
        try:
            if writes:
                if self._watch is not None:
                    self._watch.committing()
                faults.reach("edge.call.commit.before")
            self._database.connection.execute("COMMIT")
            if writes:
                faults.reach("edge.call.commit.after")
        except ValueError as error:
            if not writes:
                self.rollback()
                raise CommitFailed(code_of(str(error), "commit_failed"), f"COMMIT failed: {error}.") from None
            code, text = failed_commit(self._database, error)
            self._begun = False
            self._database.rollback()
            # Otherwise the call stays marked as committing: if the process ends, no one reports that the call was
            # undone.
            if self._watch is not None and code != COMMIT_UNKNOWN:
                self._watch.running()
            raise CommitFailed(code, text) from None
        finally:
            if writes:
                self._steps.add(call_times.COMMIT, began)
        self._begun = False
        if writes:
            self._database.lock.release()

    def rollback(self) -> None:
        """Undo what the call wrote."""
        if self._begun:
            self._begun = False
            self._database.rollback()
            if self._watch is not None and self._writes:
                self._watch.running()

    def _end_tick(self, tick: Tick, done: bool) -> None:
        try:
            if not self._begun:
                self._begin()
        except SqlError as error:
            raise CommitFailed(error.code, str(error)) from None
        if not self._writes:
            self._hold()
        try:
            new = ticks.end(self._database, tick, done=done)
        except ValueError as error:
            self.rollback()
            code = code_of_error(self._database, error, "commit_failed")
            raise CommitFailed(code, f"That the tick has ended can't be written: {error}.") from None
        if not new:
            self.rollback()
            text = "The tick has ended before, and what it wrote was kept. This time nothing was changed."
            raise CommitFailed("tick_done", text)

    def _read(self, request: bytes) -> tuple[str, list[Any]]:
        if self._grant == "none":
            raise SqlError("not_granted", "This function's manifest grants it no SQL: set `sql` to read or write.")
        if len(request) > self._limits.request_bytes:
            self.limit_code = "sql_request_too_large"
            raise SqlError(
                self.limit_code, f"The request has {len(request)} bytes; {self._limits.request_bytes} are allowed."
            )
        try:
            decoded = orjson.loads(request)
        except orjson.JSONDecodeError as error:
            raise SqlError("request_invalid", f"The request is no valid JSON: {error}.") from None
        if not isinstance(decoded, dict):
            raise SqlError("request_invalid", 'The request must be a JSON object: {"sql": …, "params": […]}.')
        sql = decoded.get("sql")
        params = decoded.get("params", [])
        if not isinstance(sql, str) or not isinstance(params, list) or len(decoded) > ("params" in decoded) + 1:
            raise SqlError("request_invalid", 'The request must have "sql", a string, "params", an array, and no more.')
        return sql, params

    def _begin(self) -> None:
        database, watch = self._database, self._watch
        writes = self._grant == "write"
        try:
            # While a release is applied, a call that has sent nothing reads alongside it, until it would write.
            if writes and (self._sent or watch is None or not watch.applying):
                began = perf_counter()
                writes = database.lock.acquire(watch, patient=self._sent)
                self._steps.add(call_times.LOCK, began)
            elif writes:
                writes = False
            self._begun, self._writes = True, writes
            if database.query_only is writes:
                database.set_query_only(not writes)
            execute, began = database.connection.execute, perf_counter()
            try:
                execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                row = execute(_READ_GENERATION).fetchone()
            except ValueError as error:
                row = self._begin_again(error)
            finally:
                self._steps.add(call_times.SQL, began, "BEGIN")
        except ValueError as error:
            self.rollback()
            raise SqlError(code_of(str(error), "sql_failed"), f"The transaction can't begin: {error}") from None
        except BaseException:
            self.rollback()
            raise
        # The fields of a GenerationRow, which is made only if they have changed.
        if row is None or row[0] != self._generation:
            self.rollback()
            raise StaleRelease
        if row[1] != self._session.applied:
            self._session.at(GenerationRow._make(row).applied)

    def _begin_again(self, error: ValueError) -> Row | None:
        """Begin the transaction that `error` prevented, as soon as the process that has the database locked releases
        it; this process doesn't spin meanwhile. Return the row of the release.

        Raises: DatabaseHeld, when that takes too long; ValueError, for any other error.
        """
        database, watch, until = self._database, self._watch, time.monotonic() + HELD_WAIT
        if watch is not None and str(error).startswith(LOCKED):
            watch.waiting()
        while str(error).startswith(LOCKED):
            if time.monotonic() > until:
                text = f"Another process has held the node's database for {HELD_WAIT:g} s. Nothing was changed."
                raise DatabaseHeld("database_held", f"{text} Try again.")
            if database.in_transaction:
                database.rows("ROLLBACK")
            time.sleep(HELD_PAUSE)
            try:
                database.rows("BEGIN IMMEDIATE" if self._writes else "BEGIN")
                row = next(iter(database.rows(_READ_GENERATION)), None)
            except ValueError as again:
                error = again
                continue
            if watch is not None:
                watch.writing()
                if not self._writes:
                    watch.running()
            return row
        raise error

    def _run(self, statement: PreparedStatement, params: list[Any], request: bytes) -> bytes:
        if len(params) != statement.count:
            raise SqlError(
                "sql_parameters",
                f"The statement takes {counted(statement.count, 'parameter')}, and was given {len(params)}.",
            )
        if statement.writes and self._grant != "write":
            raise SqlError("not_granted", self._why_not())
        if statement.writes and not self._writes:
            self._hold()
        try:
            bound, wide = values.bind(params, request) if params else ((), ())
        except values.UnsupportedValue as unfit:
            raise SqlError("sql_value", str(unfit)) from None
        try:
            cursor = self._database.connection.execute(statement.text(wide) if wide else statement.sql, bound)
            if statement.columns is None:
                statement.name_columns(cursor.description or ())
            # libsql's count for RETURNING is taken before the rows are written, but each of them is returned as a row.
            rows, count = self._fetch(cursor, statement.columns) if statement.columns else (b"[]", cursor.rowcount)
            if not statement.writes or not count:
                return b"".join((statement.before_rows, rows, _NO_CHANGES))
            last_id = str(cursor.lastrowid).encode() if statement.inserts else b"null"
            return b'%b%b,"changes":%d,"last_id":%b}' % (statement.before_rows, rows, count, last_id)
        except SqlError as error:
            self._undo(statement, str(error))
            raise
        except values.UnsupportedValue as unfit:
            self._undo(statement, str(unfit))
            raise SqlError("sql_value", str(unfit)) from None
        except ValueError as error:
            code = code_of_error(self._database, error, "sql_failed")
            if code in LIMITS:
                self.limit_code = code
            if not self._database.in_transaction:
                self._ended = str(error)
                if code in LIMITS:
                    self._ended_code = code
            raise SqlError(code, str(error)) from None
        except BaseException as panic:
            if not is_panic(panic):
                raise
            why = "A TEXT in the result is not valid UTF-8; select it as a BLOB."
            self._undo(statement, why)
            raise SqlError("sql_value", why) from None

    def _hold(self) -> NoReturn:
        """End the call's read transaction. Raises: WriteHeld."""
        self.rollback()
        raise WriteHeld

    def _fetch(self, cursor: LibsqlCursor, columns: list[str]) -> tuple[bytes, int]:
        """Return the rows as JSON, and their number.

        Raises: SqlError, when there are too many rows or bytes; UnsupportedValue, when JSON can't hold a value.
        """
        wanted = _FIRST_ROWS
        rows = cursor.fetchmany(wanted)
        count = got = len(rows)
        encoded = values.encode(rows, columns)
        self._check(count, len(encoded))
        if got < wanted:
            return encoded, count
        pieces = [encoded[1:-1]]
        size = len(encoded)
        while got == wanted:
            wanted = _FEW_ROWS
            rows = cursor.fetchmany(wanted)
            got = len(rows)
            if got:
                count += got
                encoded = values.encode(rows, columns)
                size += len(encoded)
                pieces.append(encoded[1:-1])
                self._check(count, size)
        return b"[%b]" % b",".join(pieces), count

    def _check(self, count: int, size: int) -> None:
        """Check how many rows a result has so far, and its bytes. Raises: SqlError, when it is too large."""
        if size > self._limits.answer_bytes:
            self.limit_code = "sql_answer_too_large"
            raise SqlError(
                self.limit_code,
                f"The answer is larger than {self._limits.answer_bytes} bytes; ask for less at a time.",
            )
        if count > self._limits.rows:
            self.limit_code = "sql_too_many_rows"
            raise SqlError(
                self.limit_code, f"The result has more than {self._limits.rows} rows; use LIMIT and ask again."
            )

    def _why_not(self) -> str:
        """Return why a statement that writes is refused, and what to do."""
        method = self._method
        if not method:
            return "The function writes, and its manifest grants `sql: read`; it needs `write`."
        return (
            f"The statement writes, and calls with {method} only read: call the function with POST, or name in its "
            f"manifest's `read_only_methods` those that only read ([] for none); without it, GET and HEAD do."
        )

    def _undo(self, statement: PreparedStatement, why: str) -> None:
        """Roll back the transaction if the statement wrote and its answer can't be returned: its writes must not be
        kept."""
        if statement.writes:
            self._ended = why
            self._database.connection.execute("ROLLBACK")
