"""The ticks of schedules that the libsql file knows: which have ended, and since when a line counts.

The function's own transaction writes that its tick is done, so that its effect is there exactly once. Numbers are bound
as text, as libsql would bind those above 31 bits as REAL.
"""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from edge_runtime.ipc.frames import LocalFunction, StoredTick, TickNote
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.queries import NumberRow, TickRow, load
from edge_runtime.sql.session import failed_commit

LOCK_WAIT: Final = 2.0
"""Seconds that notes wait for the writer lock."""

_MAKE: Final = load("make_ticks")
_HAS: Final = load("has_ticks")
_READ: Final = load("read_ticks")
_END: Final = load("end_tick")
_INSERT: Final = load("insert_tick")
_DELETE: Final = load("delete_ticks")
_DELETE_DUE: Final = load("delete_due_ticks")
_PRUNE: Final = load("prune_ticks")


class Tick(NamedTuple):
    """A tick of a function's schedule."""

    function: str
    cron: str
    """Empty for the call that follows a release."""
    seconds: int
    """When it was due, in Unix seconds."""


def of_headers(function: str, headers: Iterable[tuple[str, str]]) -> Tick:
    """Return the tick that the front's headers of a call name."""
    told = dict(headers)
    return Tick(
        function, told.get("skerry-cron", ""), int(datetime.fromisoformat(told["skerry-scheduled-at"]).timestamp())
    )


def end(database: LibsqlDatabase, tick: Tick, *, done: bool) -> bool:
    """Write, in the open transaction, that a tick has ended; return whether the file didn't say so before.

    Raises: ValueError, when libsql refuses.
    """
    key = (tick.function, tick.cron, str(tick.seconds))
    cursor = database.connection.execute(_END, (*key, "done" if done else "failed", str(int(time.time()))))
    if not cursor.rowcount:
        return False
    database.rows(_PRUNE, key)
    return True


def read(database: LibsqlDatabase) -> list[StoredTick]:
    """Return all that the file knows. Raises: ValueError, when libsql refuses."""
    if not database.read(NumberRow, _HAS)[0].value:
        return []
    return [StoredTick(*row) for row in database.read(TickRow, _READ)]  # type: ignore[arg-type]


def note(database: LibsqlDatabase, notes: Sequence[TickNote]) -> bool:
    """Write that ticks have ended, in a transaction of its own; return whether that is in the file now."""
    if not database.lock.acquire_within(LOCK_WAIT):
        return False
    try:
        database.set_query_only(False)
        database.rows("BEGIN IMMEDIATE")
        for one in notes:
            end(database, Tick(one.function, one.cron, one.tick), done=one.done)
        try:
            database.rows("COMMIT")
        except ValueError as error:
            failed_commit(database, error)
            raise
    except ValueError as error:
        print(f"ticks that have ended can't be noted: {error}", file=sys.stderr, flush=True)
        return False
    finally:
        database.rollback()
    return True


def follow(opened: LibsqlDatabase, functions: Sequence[LocalFunction], before: Mapping[str, int], now: float) -> None:
    """Bring the rows in line with a release, in its transaction; `before` has the versions of the functions of now.

    Raises: ValueError, when libsql refuses.
    """
    lines = {(f.name, line) for f in functions for line in f.manifest.schedule}
    called = {f.name: f.version for f in functions if f.manifest.on_release}
    wanted = lines | {(name, "") for name in called}
    if not wanted and not opened.read(NumberRow, _HAS)[0].value:
        return
    opened.rows(_MAKE)
    known = {(row.function, row.cron) for row in opened.read(TickRow, _READ)}
    for key in known - wanted:
        opened.rows(_DELETE, key)
    for key in lines - known:
        opened.rows(_INSERT, (*key, str(int(now)), "since"))
    for name, version in called.items():
        if before.get(name) != version:
            opened.rows(_DELETE_DUE, (name,))
            opened.rows(_INSERT, (name, "", str(int(now)), "due"))
