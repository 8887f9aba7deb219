"""Recording what changes about who may come in, so that the next access list has it (ADR 55).

It is recorded in the transaction that makes the change, and gets into the bucket later: a bucket that doesn't answer
neither slows a revocation down nor makes it fail.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from control.storage import queries
from control.storage.connection import Connection
from control.storage.recovery.access_list import Kind
from control.tokens import Token

SQL = queries.load("access_lists")


async def record(
    conn: Connection, now: datetime, kind: Kind, subject: UUID | str, details: Mapping[str, Any] | None = None
) -> None:
    """Record one change. `details` may have hashes of secrets, and no secret."""
    await conn.execute(SQL["record"], uuid4(), now, kind, subject, dict(details or {}))


async def record_credential(
    conn: Connection, now: datetime, credential: Token, node_id: UUID | str, replaces: str | None = None
) -> None:
    """Record a node's new credential: without it, a node that got it after the backup would have to join again."""
    told = {"node": str(node_id), "hash": credential.secret_hash, "replaces": replaces}
    await record(conn, now, "credential-made", credential.id, told)


async def record_all(conn: Connection, now: datetime, kind: Kind, subjects: Collection[str]) -> None:
    """Record the same kind of change of several subjects."""
    if subjects:
        await conn.execute(SQL["record_all"], [str(uuid4()) for _ in subjects], sorted(subjects), now, kind)
