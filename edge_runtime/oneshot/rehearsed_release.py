"""Applies a release to a copy of a node's data behind the fence, as the applier would to the data itself, and measures
what each schema change does."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from control.protocol import faults, wire
from edge_runtime import aot_cache, wal
from edge_runtime.children import apply_changes, probe_call, release_transaction
from edge_runtime.children.warmup import rehearse as warm_up
from edge_runtime.errors import SyncFailed
from edge_runtime.guests import guest
from edge_runtime.ipc import frames
from edge_runtime.ipc.rehearsal_messages import MESSAGE, RehearsalTask, Told
from edge_runtime.oneshot import offending_row
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, READ, WRITE
from edge_runtime.sql import database, schema
from edge_runtime.sql.database import DatabaseOpenError, LibsqlDatabase
from edge_runtime.sql.libsql_connection import LibsqlConnection, LibsqlCursor
from edge_runtime.sql.queries import NumberRow, ViolationRow
from edge_runtime.sql.values import Row, Value
from edge_runtime.sql.writer_lock import WriteProgress, WriterLock
from edge_runtime.wasmedge import Unsafe

UPPER: Final = 2.0
"""What was measured is multiplied by this for the stall to expect: measured estimates were up to 1.6 times too low."""
CHECKPOINT_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the copy's log from which it is moved into its file between batches. Nobody else does that for a copy."""
UNTRIED: Final = frozenset({"disk_full", "disk_failed", "database_held", "database_unfit", "wal_full"})
"""Codes of failures that say nothing about the release."""
_TOTAL: Final = "SELECT total_changes()"
_OWN: Final = "_skerry_"


class _MeasuredLock(WriterLock):
    """The copy's writer lock, which nobody else wants. It keeps for how long it was held."""

    def __init__(self, descriptor: int, released: Callable[[], None]) -> None:
        super().__init__(descriptor)
        self.since: float | None = None
        """When it was taken; None while it isn't held."""
        self.longest = 0.0
        """Seconds for which it was held, the longest since this was set to 0."""
        self._released = released

    def acquire(self, watch: WriteProgress | None = None, *, patient: bool = True) -> bool:
        taken = super().acquire(watch, patient=patient)
        self.since = self.since or time.monotonic()
        return taken

    def release(self) -> None:
        held = self.since is not None
        if self.since is not None:
            self.longest = max(self.longest, time.monotonic() - self.since)
            self.since = None
        super().release()
        if held:
            self._released()


class _CopyCursor:
    """The answer to a statement of a schema change, or to a check of foreign keys: it may fail only when it is read."""

    def __init__(
        self, cursor: LibsqlCursor, failed: Callable[[ValueError], None], found: Callable[[Row], None]
    ) -> None:
        self._cursor = cursor
        self._failed = failed
        self._found = found
        """Called with rows that are read."""

    def fetchmany(self, size: int) -> list[Row]:
        try:
            rows = self._cursor.fetchmany(size)
        except ValueError as error:
            self._failed(error)
            raise
        if rows:
            self._found(rows[0])
        return rows

    def fetchall(self) -> list[Row]:
        try:
            return self._cursor.fetchall()
        except ValueError as error:
            self._failed(error)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class _CopyConnection:
    """A connection that notes which row a statement fails at."""

    def __init__(self, connection: LibsqlConnection, tell: Callable[[Told], None]) -> None:
        self.inner = connection
        self.plain = LibsqlDatabase(connection, WriterLock(-1))
        """The same connection, without notes."""
        self.wanted = False
        """Whether a part of a schema change is running."""
        self.row = ""
        """The row, as `table key=value`; empty if it isn't known."""
        self.error = ""
        """SQLite's message about it."""
        self._tell = tell

    @property
    def in_transaction(self) -> bool:
        return self.inner.in_transaction

    def execute(self, sql: str, parameters: tuple[Value, ...] = (), /) -> LibsqlCursor:
        def failed(error: ValueError) -> None:
            # The runtime's own tables may be missing.
            own = bool(parameters) or _OWN in sql
            if self.wanted and not own and not self.error and not offending_row.is_shortage(str(error)):
                self.error = str(error)
                self._tell(Told(failing=self.error))
                with contextlib.suppress(ValueError):
                    self.row = offending_row.find(self.plain, sql)

        checks = sql.startswith("PRAGMA foreign_key_check")
        try:
            cursor = self.inner.execute(sql, parameters)
        except ValueError as error:
            failed(error)
            raise
        if not checks and not self.wanted:
            return cursor
        return cast(LibsqlCursor, _CopyCursor(cursor, failed, self._orphan if checks else lambda _: None))

    def close(self) -> None:
        self.inner.close()

    def _orphan(self, row: Row) -> None:
        found = ViolationRow._make(row)
        if not self.row and found.rowid is not None:
            self.row = offending_row.shown(self.plain, found.table, found.rowid)


class _MeasuredCopy(LibsqlDatabase):
    """The copy, whose own statements of the runtime aren't counted as a change's."""

    own = 0
    """Rows that the runtime's own statements wrote."""

    def rows(self, sql: str, params: tuple[Value, ...] = ()) -> list[Row]:
        if _OWN not in sql:
            return super().rows(sql, params)
        before = self.written()
        try:
            return super().rows(sql, params)
        finally:
            self.own += self.written() - before

    def written(self) -> int:
        """Return the rows that were written since the file was opened."""
        return self.read(NumberRow, _TOTAL)[0].value


class _ChangeMeasures:
    """What each schema change did."""

    def __init__(self, plan: wire.Plan, copy: _MeasuredCopy, connection: _CopyConnection, lock: _MeasuredLock) -> None:
        self.changes: dict[int, wire.RehearsedChange] = {}
        """By the change's number."""
        self._names = {change.number: change.name for change in plan.schema_changes}
        self._copy = copy
        self._connection = connection
        self._lock = lock
        self._flipped: dict[int, float] = {}
        """Seconds of the changes' parts that ran in the release's transaction."""

    @contextlib.contextmanager
    def around(self, number: int) -> Iterator[None]:
        """Measure the block, a part of this change."""
        copy, lock = self._copy, self._lock
        within = lock.since is not None
        rows, began, lock.longest = copy.written() - copy.own, time.monotonic(), 0.0
        self._connection.wanted = True
        yield
        self._connection.wanted = False
        seconds = time.monotonic() - began
        if within:
            self._flipped[number] = self._flipped.get(number, 0.0) + seconds
        if number not in self._names:
            return
        change = self.changes.get(number) or wire.RehearsedChange(number, self._names[number])
        self.changes[number] = msgspec.structs.replace(
            change,
            rows=change.rows + copy.written() - copy.own - rows,
            seconds=change.seconds + seconds,
            stall=max(change.stall, 0.0 if within else lock.longest),
        )

    def committed(self, held: float) -> None:
        """Note for how many seconds the release's transaction held the lock. What it did besides its changes (the check
        of foreign keys, probes, the COMMIT) counts for each of them."""
        besides = max(0.0, held - sum(self._flipped.values()))
        for number, change in self.changes.items():
            stall = max(change.stall, besides + self._flipped.get(number, 0.0))
            self.changes[number] = msgspec.structs.replace(change, stall=stall)

    def told(self) -> list[wire.RehearsedChange]:
        """Return all of it, with the upper ends of the estimates."""
        return [
            msgspec.structs.replace(change, seconds=round(change.seconds, 4), stall=round(UPPER * change.stall, 4))
            for _, change in sorted(self.changes.items())
        ]


def play(task: RehearsalTask, place: Path, rate: float, tell: Callable[[Told], None]) -> None:
    """Apply the release to the copy in `place`, and tell what came of it last. `rate`: bytes that the disk takes in a
    second. The process must exit afterwards."""
    state = Path(task.state)
    # SQLite reads it only once.
    os.environ["SQLITE_TMPDIR"] = str(place / wal.TEMPORARY)
    try:
        guest.prepare()
        warm_up()
        written = [(place / wal.FILE.parent, WRITE), (place / wal.TEMPORARY, WRITE)]
        fence.enclose([*written, (state / aot_cache.FOLDER, READ), (state / "artifacts", READ), RANDOM])
        opened = database.connect_until_exit(place / wal.FILE, "FULL", foreign_keys=False)
        opened.rows(f"PRAGMA hard_heap_limit = {apply_changes.HEAP_BYTES}")
        fence.limit_files(fence.FILE_BYTES)
        fence.seal("applier", opened.lock.fileno())
    except (Unsafe, DatabaseOpenError, OSError, ValueError) as error:
        code = error.code if isinstance(error, DatabaseOpenError) else "rehearsal_impossible"
        tell(Told(failing=f"The release couldn't be tried: {error}.", untried=code))
        return
    connection = _CopyConnection(opened.connection, tell)
    lock = _MeasuredLock(opened.lock.fileno(), lambda: _spare_the_log(opened) if task.steps else None)
    copy = _MeasuredCopy(cast(LibsqlConnection, connection), lock, opened.path)
    copy.wal_limit = task.wal_limit
    copy.file_limit_was_hit = fence.file_limit_was_hit
    measures = _ChangeMeasures(task.plan, copy, connection, lock)
    try:
        digest = _apply(task, copy, lock, measures, rate, tell)
    except SyncFailed as failed:
        message = _without_contents(failed.brief or failed.message, connection.error, task.plan)
        if failed.code in UNTRIED:
            tell(Told(failing=message, untried=failed.code))
            return
        row = connection.row if failed.code in ("schema_change_failed", "foreign_key_violation") else ""
        result = wire.RehearsalResult("failed", failed.code, message[:MESSAGE], row, measures.told())
    else:
        result = wire.RehearsalResult("passed", changes=measures.told(), schema_digest=digest)
    tell(Told(result=result))


def _apply(
    task: RehearsalTask,
    copy: _MeasuredCopy,
    lock: _MeasuredLock,
    measures: _ChangeMeasures,
    rate: float,
    tell: Callable[[Told], None],
) -> str:
    """Do what the node would do; return the digest of the schema that came of it. Raises: SyncFailed."""

    def doing(text: str) -> None:
        tell(Told(doing=text))

    tried = probe_call.TriedFunctions()
    for function in task.functions:
        doing(f"the function {function.name} was loaded")
        tried.load(function, task.secrets.get(function.name, {}), lambda _: None)
    if task.steps:
        order = frames.Advance(task.plan, task.generation, task.serving, task.serving_secrets)
        apply_changes.advance(copy, order, doing, measures.around)
    release_transaction.prepare(copy, task.plan, task.functions, task.secrets, doing, tried, around=measures.around)
    faults.reach("edge.rehearsal.prepared")
    doing("the COMMIT")
    # Most of it is on disk already, as it wouldn't be on the node.
    flush = 0.0 if copy.path is None else wal.uncommitted(copy.path) / rate
    release_transaction.commit(copy)
    # The lock was held since before the first change.
    measures.committed(lock.longest + flush)
    if task.steps:
        apply_changes.finish(copy, doing, measures.around)
    return schema.shape_digest(copy)


def _spare_the_log(opened: LibsqlDatabase) -> None:
    """Move the copy's log into its file once it is long, while no lock is held."""
    if opened.path is not None and not opened.in_transaction and wal.committed(opened.path) > CHECKPOINT_BYTES:
        with contextlib.suppress(ValueError):
            opened.rows("PRAGMA wal_checkpoint(TRUNCATE)")


def _without_contents(message: str, error: str, plan: wire.Plan) -> str:
    """Return the message; what its `error` of SQLite quotes is left out, unless the schema changes have it too: it may
    be a value."""
    known = "\n".join(change.sql for change in plan.schema_changes)
    return message.replace(error, offending_row.without_values(error, known)) if error else message
