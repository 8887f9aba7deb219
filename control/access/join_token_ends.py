"""Join tokens: the states that they have, and what they end with besides their time and their use.

A token ends with the operator who made it. One that a node joined with, or may join again with, ends when that node
joins again by another token, is revoked or is removed: whoever finds it later must not become that node.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

from control.storage import queries
from control.storage.connection import Connection
from control.storage.recovery import access_changes

State = Literal["open", "used", "expired", "revoked"]

SQL = queries.load("join_tokens")
REVOKE_FOR_NODE = SQL.value("revoke_for_node", str)
REVOKE_OF_OPERATOR = SQL.value("revoke_of_operator", str)


def state(
    *, used_at: datetime | None, revoked_at: datetime | None, expires_at: datetime, unbound: bool, now: datetime
) -> State:
    """The state of a token; `unbound`: it is for a node to join again, and doesn't say which."""
    if used_at is not None:
        return "used"
    if revoked_at is not None or unbound:
        return "revoked"
    return "expired" if expires_at <= now else "open"


async def end_for_node(conn: Connection, node_id: UUID, now: datetime, *, but: UUID | None = None) -> None:
    """End the tokens that a node joined with or may join again with, except `but`, by which it has joined again."""
    ended = await conn.column(REVOKE_FOR_NODE, node_id, now, but)
    await access_changes.record_all(conn, now, "join-token-ended", ended)


async def end_of_operator(conn: Connection, operator: str, now: datetime) -> None:
    """End the tokens that an operator, by name, has made."""
    ended = await conn.column(REVOKE_OF_OPERATOR, operator, now)
    await access_changes.record_all(conn, now, "join-token-ended", ended)
