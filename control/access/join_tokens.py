"""Join tokens: whether one is valid, which states there are, and what ends them besides expiry and use.

A token ends with the operator who made it. One that a node joined with, or may join again with, ends when that node
joins again by another token, is revoked or is removed: whoever finds it later must not become that node.
"""

from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

from starlette.types import Scope

from control import tokens
from control.access import auth
from control.access.auth import AuthError
from control.clock import Clock
from control.storage import access_changes, queries
from control.storage.batched_lookups import Lookups
from control.storage.connection import Connection
from control.storage.database import Database

State = Literal["open", "used", "expired", "revoked"]


class JoinTokenRow(NamedTuple):
    """A join token, as stored."""

    id: str
    secret_hash: str
    expires_at: datetime
    revoked_at: datetime | None


SQL = queries.load("join_tokens")
STORED = SQL.rows("stored", JoinTokenRow)
REVOKE_FOR_NODE = SQL.value("revoke_for_node", str)
REVOKE_OF_OPERATOR = SQL.value("revoke_of_operator", str)


class JoinTokens:
    """Checks the tokens of joining nodes; several are looked up in one query."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._clock = clock

        async def find(ids: list[str]) -> dict[str, JoinTokenRow]:
            return {row.id: row for row in await db.read(lambda conn: conn.fetch(STORED, ids))}

        self.lookups = Lookups("join tokens", find)

    async def check(self, scope: Scope) -> None:
        """Check a join token before any of the body is read. Raises: AuthError, when refused.

        Whether the token was used is checked later, since the same attempt to join may be repeated.
        """
        id, secret_hash = auth.bearer(scope, "join")
        token = await self.lookups.find(id)
        if token is None or not tokens.same(token.secret_hash, secret_hash):
            raise AuthError("credentials_invalid", "the join token isn't known", "join_token_unknown")
        refuse_ended(token.expires_at, token.revoked_at, self._clock.now())

    async def stop(self) -> None:
        """Cancel the running look-up."""
        await self.lookups.stop()


def refuse_ended(expires_at: datetime, revoked_at: datetime | None, now: datetime) -> None:
    """Refuse a join token that has expired or was revoked. Raises: AuthError."""
    if revoked_at is not None:
        raise token_revoked()
    if expires_at <= now:
        raise AuthError("token_expired", f"the join token expired at {expires_at}; make another one", "expired")


def token_revoked() -> AuthError:
    """Make the refusal of a join token that ended before its time."""
    return AuthError(
        "token_revoked",
        "the join token was revoked, or ended with the operator who made it, or its node has joined again, was revoked "
        "or was removed; make another one",
        "token_revoked",
    )


def state(
    *, used_at: datetime | None, revoked_at: datetime | None, expires_at: datetime, unbound: bool, now: datetime
) -> State:
    """Return the state of a token; `unbound`: it is for a node to join again, and doesn't say which."""
    if used_at is not None:
        return "used"
    if revoked_at is not None or unbound:
        return "revoked"
    return "expired" if expires_at <= now else "open"


async def end_for_node(conn: Connection, node_id: UUID, now: datetime, *, but: UUID | None = None) -> None:
    """End the tokens with which a node joined or may join again, except `but`, with which it just joined again."""
    ended = await conn.column(REVOKE_FOR_NODE, node_id, now, but)
    await access_changes.record_all(conn, now, "join-token-ended", ended)


async def end_of_operator(conn: Connection, operator: str, now: datetime) -> None:
    """End the tokens made by the operator with this name."""
    ended = await conn.column(REVOKE_OF_OPERATOR, operator, now)
    await access_changes.record_all(conn, now, "join-token-ended", ended)
