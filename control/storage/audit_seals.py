"""Seals over the audit log's rows (ADR 35): made for rows that have none, and deleted with rows that are old.

The monitor does it, under its lease. A row that is committed late goes under a later seal.
"""

from datetime import datetime

from control import audit_chain
from control.audit_chain import AuditEntry, AuditSeal
from control.clock import Clock
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database

MOST = 500
"""Rows under one seal, which are read, hashed and written in one transaction."""

SQL = queries.load("audit")
UNSEALED = SQL.value("unsealed", str)
TO_SEAL = SQL.rows("to_seal", AuditEntry)
NEWEST_SEAL = SQL.rows("newest_seal", AuditSeal)
OLDEST_SEAL = SQL.optional("oldest_seal", int)


async def seal(db: Database, clock: Clock, now: datetime, seconds: float) -> bool:
    """Put rows under seals for `seconds`; return whether all have one. Raises: ProblemError, Locked."""
    end = clock.monotonic() + seconds
    while True:
        ids = await db.read(lambda conn: conn.column(UNSEALED, MOST))
        if ids:
            await db.transaction(lambda conn, ids=ids: _seal(conn, ids, now))  # type: ignore[misc]
        if len(ids) < MOST:
            return True
        if clock.monotonic() >= end:
            return False


async def cut(db: Database, clock: Clock, now: datetime, before: datetime, seconds: float) -> bool:
    """Delete the rows under seals that have none younger than `before`, for `seconds`; return whether all are gone.

    The newest of these seals stays, so that the chain begins with what its hash was. Raises: ProblemError, Locked.
    """
    end = clock.monotonic() + seconds
    while True:
        number = await db.read(lambda conn: conn.fetchval(OLDEST_SEAL, before))
        if number is None:
            return True
        await db.transaction(lambda conn, number=number: _cut(conn, number, now))  # type: ignore[misc]
        if clock.monotonic() >= end:
            return False


async def _seal(conn: Connection, ids: list[str], now: datetime) -> None:
    entries = await conn.fetch(TO_SEAL, ids)
    if not entries:
        return
    last = await conn.fetchrow(NEWEST_SEAL)
    number, previous = (1, "") if last is None else (last.number + 1, last.hash)
    made = audit_chain.seal(number, previous, entries, now)
    await conn.execute(
        SQL["add_seal"],
        made.number,
        made.previous,
        made.hash,
        made.rows_hash,
        made.count,
        made.first_at,
        made.last_at,
        made.sealed_at,
    )
    await conn.execute(SQL["put_under"], [entry.id for entry in entries], made.number)


async def _cut(conn: Connection, number: int, now: datetime) -> None:
    await conn.execute(SQL["cut_rows"], number)
    await conn.execute(SQL["cut"], number, now)
    await conn.execute(SQL["forget_seals"], number)
