"""Join tokens: created, listed and revoked by operators. `nodes` has the join itself."""

from datetime import datetime, timedelta
from typing import Annotated, Any, NamedTuple
from uuid import UUID

from msgspec import Meta, Struct

from control import tokens
from control.access.join_tokens import State, state
from control.api import node_views, pagination
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol.wire import Body, Name
from control.storage import access_changes, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection


class NewJoinToken(Body, frozen=True):
    group: Name = "default"
    expires_in: Annotated[int, Meta(ge=60, le=30 * 86400)] = 3600
    """Seconds."""
    rejoin: Name | None = None
    """A node whose disk was lost: it joins again, and its new disk gets its identity; its old credentials end."""


class MadeJoinToken(Struct):
    id: str
    token: str
    """The token's text, which is returned only once."""
    group: str
    expires_at: datetime


class JoinToken(Struct):
    """A join token, without its secret."""

    id: str
    group: str
    rejoin: str | None
    """The node that it lets join again, or null."""
    created_by: str
    created_at: datetime
    expires_at: datetime
    state: str
    """`open`, `used`, `expired` or `revoked`."""
    node: str | None
    """The node that joined with it, or null."""


class ListedJoinToken(NamedTuple):
    """A join token in a list. `node` is the name of the node that joined with it."""

    id: UUID
    group_name: str
    rejoin: str | None
    rejoin_node: UUID | None
    created_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    revoked_at: datetime | None
    node: str | None


class TokenUser(NamedTuple):
    """The group of a token, and the node that joined with it; `used_at` and `node` are None while none has."""

    group_name: str
    used_at: datetime | None
    node: str | None


SQL = queries.load("join_tokens")
RENEW = SQL.optional("renew", UUID)
LISTED = SQL.rows("listed", ListedJoinToken)
USER = SQL.rows("user", TokenUser)


class JoinTokenFilter(pagination.Paging, forbid_unknown_fields=True):
    state: State | None = None


@operation(
    "POST",
    "/v1/join-tokens",
    "Make a one-time token to join with",
    role="admin",
    everywhere=False,
    answers={201: MadeJoinToken},
    errors=("unknown_group", "unknown_node", "token_used"),
)
async def create(call: ApiCall, body: NewJoinToken) -> Reply:
    """Make a token. Only its hash is stored, so the same request again gets a new one."""
    fingerprint = call.services.certificates.trust.fingerprint

    async def work(conn: Connection, _changed: Changed) -> MadeJoinToken:
        now = call.services.clock.now()
        rejoin, node_id = None, None
        if body.rejoin is not None:
            node = await node_views.find(conn, call.operator, "admin", body.rejoin, "rejoin")
            rejoin, node_id = node.name, node.id
            # The node stays in its group.
            group, name = node.group_id, node.group_name
        else:
            call.operator.need("admin", body.group)
            group, name = await node_views.group(conn, body.group), body.group
        token = tokens.new_token("join")
        ends = now + timedelta(seconds=body.expires_in)
        if call.operator.expires_at is not None:
            ends = min(ends, call.operator.expires_at)
        await conn.execute(
            SQL["add"], token.id, token.secret_hash, group, call.operator.name, now, ends, rejoin, node_id
        )
        after = {"group": name, "rejoin": rejoin, "expires_at": ends}
        await call.audit(conn, "join-token.create", str(token.id), after=after)
        return MadeJoinToken(str(token.id), _with(token.text, fingerprint), name, ends)

    async def renew(conn: Connection, _changed: Changed, kept: dict[str, Any]) -> MadeJoinToken:
        token = tokens.new_token("join", UUID(kept["id"]))
        if await conn.fetchval(RENEW, token.id, token.secret_hash) is None:
            raise ProblemError("token_used", "the token that this request made was used or revoked; make another one")
        await call.audit(conn, "join-token.renew", kept["id"])
        text = _with(token.text, fingerprint)
        return MadeJoinToken(kept["id"], text, kept["group"], datetime.fromisoformat(kept["expires_at"]))

    return await call.write(work, renew=renew)


@operation(
    "GET",
    "/v1/join-tokens",
    "Join tokens, newest first",
    role="admin",
    everywhere=False,
    answers={200: pagination.Page[JoinToken]},
)
async def list_tokens(call: ApiCall, query: JoinTokenFilter) -> Reply:
    """List tokens, newest first, without their secrets, which control doesn't have."""
    now = call.services.clock.now()
    begin = pagination.read_cursor(query.cursor, (datetime, UUID)) or (None, None)

    groups = call.operator.rights.groups("admin")

    async def work(conn: Connection) -> pagination.Page[JoinToken]:
        return await pagination.fill(
            lambda after, count: conn.fetch(LISTED, *after, groups, query.state, now, count),
            pagination.each(lambda row: _listed(row, now)),
            lambda row: (row.created_at, row.id),
            begin,
            query.limit,
        )

    return await call.read(work)


@operation(
    "DELETE",
    "/v1/join-tokens/{id}",
    "Revoke a join token",
    role="admin",
    everywhere=False,
    answers={204: None},
    errors=("unknown_join_token", "node_joined"),
)
async def revoke(call: ApiCall) -> Reply:
    """Revoke a token: no node can join with it any more."""
    id = call.path["id"]

    async def work(conn: Connection, _changed: Changed) -> None:
        row = await conn.fetchrow(USER, id)
        if row is None or not call.operator.rights.allows("read", row.group_name):
            raise ProblemError("unknown_join_token", f"there is no join token {id}", field="id")
        call.operator.need("admin", row.group_name)
        if row.used_at is not None:
            raise ProblemError(
                "node_joined",
                f"the node {row.node} has joined with this token: to keep it out, `skerry node revoke {row.node}`",
                field="id",
            )
        now = call.services.clock.now()
        await conn.execute(SQL["revoke"], id, now)
        await access_changes.record(conn, now, "join-token-ended", id)
        await call.audit(conn, "join-token.revoke", id)

    return await call.write(work, status=204)


def _listed(row: ListedJoinToken, now: datetime) -> JoinToken:
    return JoinToken(
        id=str(row.id),
        group=row.group_name,
        rejoin=row.rejoin,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        state=state(
            used_at=row.used_at,
            revoked_at=row.revoked_at,
            expires_at=row.expires_at,
            unbound=row.rejoin is not None and row.rejoin_node is None,
            now=now,
        ),
        node=row.node,
    )


def _with(token: str, fingerprint: str) -> str:
    """Append the fingerprint of control's CA, if there is one, to a join token."""
    return f"{token}.{fingerprint}" if fingerprint else token
