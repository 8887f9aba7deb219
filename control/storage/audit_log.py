"""The audit log: a row for each change to control's data, in the transaction that makes the change.

The monitor seals rows that have no seal (ADR 35), and deletes seals with old rows. A row that is committed late gets a
later seal. The contents of a seal, and the check of a chain of them, are in `control.audit_chain`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from control import audit_chain
from control.audit_chain import AuditEntry, AuditSeal
from control.clock import Clock
from control.storage import events, queries
from control.storage.connection import Connection, log_at_commit
from control.storage.database import Database

SQL = queries.load("audit")
RECORD = SQL["record"]
UNSEALED = SQL.value("unsealed", str)
TO_SEAL = SQL.rows("to_seal", AuditEntry)
NEWEST_SEAL = SQL.rows("newest_seal", AuditSeal)
OLDEST_SEAL = SQL.optional("oldest_seal", int)

ROWS_OF_SEAL = 500
"""Maximum rows under one seal, which are read, hashed and written in one transaction."""


@dataclass(frozen=True)
class Actor:
    """Who makes a change."""

    kind: Literal["operator", "node", "control"]
    """`control`: control itself, or a command with the database's URL and no operator's token."""
    name: str
    """The operator's or the node's name, or the part of control."""
    address: str = ""
    """The client's IP address; '' if the change wasn't asked for over the network."""
    call_id: str = ""
    """The id of the request, which its answer has in the header X-Request-Id; '' without a request."""


async def record(
    conn: Connection,
    now: datetime,
    actor: Actor,
    action: str,
    target: str,
    details: Mapping[str, Any] | None = None,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Record a change of `target` in the transaction that makes it, and log it after COMMIT.

    An operator's change is also an event. `before` and `after` are values by name; the row has those that differ.
    `details` are circumstances, such as a reason. None of them may be a secret, or the hash of one.
    """
    old, new = before or {}, after or {}
    await conn.execute(
        RECORD,
        uuid4(),
        now,
        actor.kind,
        actor.name,
        actor.address,
        actor.call_id,
        action,
        target,
        dict(details or {}),
        {name: value for name, value in old.items() if name not in new or new[name] != value},
        {name: value for name, value in new.items() if name not in old or old[name] != value},
    )
    call = f" (request {actor.call_id})" if actor.call_id else ""
    log_at_commit(f"{actor.kind} {actor.name}: {action} {target}{call}")
    if actor.kind == "operator":
        act = {"operator": actor.name, "action": action, "target": target, "call_id": actor.call_id}
        await events.record(conn, now, "operator.acted", [act])


async def seal(db: Database, clock: Clock, now: datetime, seconds: float) -> bool:
    """Seal rows, for `seconds` at most; return whether all are sealed. Raises: ProblemError, Locked."""
    end = clock.monotonic() + seconds
    while True:
        ids = await db.read(lambda conn: conn.column(UNSEALED, ROWS_OF_SEAL))
        if ids:
            await db.transaction(lambda conn, ids=ids: _seal(conn, ids, now))  # type: ignore[misc]
        if len(ids) < ROWS_OF_SEAL:
            return True
        if clock.monotonic() >= end:
            return False


async def cut(db: Database, clock: Clock, now: datetime, before: datetime, seconds: float) -> bool:
    """Delete rows whose seal covers none younger than `before`, for `seconds` at most; return whether none are left.

    The newest of these seals stays, so the rest of the chain begins with its hash. Raises: ProblemError, Locked.
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
