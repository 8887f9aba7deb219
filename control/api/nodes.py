"""Nodes: joining, credentials, moves and removals (R 1.1, 1.2, 7.3)."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from control import wire
from control.api import auth, node_views, responses
from control.api.auth import AuthError
from control.api.operations import Answer, Call
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from control.sync import compatibility, requirements

SQL = queries.load("nodes")


async def make_join_token(call: Call) -> Answer:
    """POST /v1/join-tokens. The token is kept as a hash alone: asked again under its key, it is replaced."""
    body = call.body
    fingerprint = call.services.ca_fingerprint

    async def work(conn: Any, _changed: Changed) -> responses.MadeJoinToken:
        now = call.services.clock.now()
        group, name = await _group(conn, body.group), body.group
        if body.rejoin is not None:
            # It stays in its group.
            node = await node_views.find(conn, body.rejoin, "rejoin")
            group, name = node["group_id"], node["group_name"]
        token = auth.new_token("join")
        expires = now + timedelta(seconds=body.expires_in)
        await conn.execute(
            SQL["add_join_token"], token.id, token.secret_hash, group, call.operator.name, now, expires, body.rejoin
        )
        await call.audit(conn, "join-token.create", str(token.id), {"group": name, "rejoin": body.rejoin})
        return responses.MadeJoinToken(str(token.id), _with(token.text, fingerprint), name, expires)

    async def renew(conn: Any, _changed: Changed, kept: dict[str, Any]) -> responses.MadeJoinToken:
        token = auth.new_token("join", UUID(kept["id"]))
        if await conn.fetchval(SQL["renew_join_token"], token.id, token.secret_hash) is None:
            raise ProblemError("token_used", "the token that this request made was used; make another one")
        text = _with(token.text, fingerprint)
        return responses.MadeJoinToken(kept["id"], text, kept["group"], datetime.fromisoformat(kept["expires_at"]))

    return await call.write(work, renew=renew)


async def join(call: Call) -> Answer:
    """POST /v1/nodes, with a join token (R 1.1, 1.2, 7.3).

    The same attempt again, before its credential was used, gets another credential: a lost answer loses nothing.
    """
    token_id, secret_hash = auth.bearer(call.scope, "join")
    body: wire.Join = call.body
    for field, value in (("labels", body.labels), ("capabilities", body.capabilities)):
        requirements.check(field, value)

    async def work(conn: Any) -> wire.Joined:
        now, changed = call.services.clock.now(), Changed()
        token = await conn.fetchrow(SQL["join_token"], token_id)
        if token is None or not auth.same(token["secret_hash"], secret_hash):
            raise AuthError("credentials_invalid", "the join token isn't known", "join_token_unknown")
        auth.refuse_expired(token["expires_at"], now)
        if token["attempt"] is None:
            node_id = await _admit(conn, changed, body, token, now)
            await conn.execute(SQL["use_join_token"], token_id, body.attempt, node_id, now)
        else:
            node_id = token["node_id"]
            used = await conn.fetchval(SQL["credential_used"], node_id, token["used_at"])
            if token["attempt"] != body.attempt or used:
                raise AuthError("token_used", "a join token is good for one node; make another one", "token_used")
            changed.credentials |= await _revoke(conn, node_id, now)
        node = await conn.fetchrow(SQL["name_and_group"], node_id)
        if node["removed_at"] is not None or node["name"] != body.name:
            raise AuthError("token_used", "the token was used for another node; make another one", "token_used")
        credential = auth.new_token("node")
        await conn.execute(SQL["add_credential"], credential.id, node_id, credential.secret_hash, now, None)
        await changed.announce(conn)
        return wire.Joined(str(node_id), credential.text, node["group_name"])

    answer = Answer(201, await call.services.joins.transaction(work))
    await call.services.fleet.announced()
    return answer


async def rotate(call: Call) -> Answer:
    """POST /v1/nodes/self/credential: the old credential ends when the new one is first used."""
    node_id, old = call.node_id, call.credential_id

    async def work(conn: Any) -> wire.Rotated:
        now = call.services.clock.now()
        revoked = await conn.fetch(SQL["revoke_unused"], node_id, old, now)
        credential = auth.new_token("node")
        await conn.execute(SQL["add_credential"], credential.id, node_id, credential.secret_hash, now, old)
        await Changed(credentials={row["id"] for row in revoked}).announce(conn)
        return wire.Rotated(credential.text)

    answer = Answer(201, await call.services.joins.transaction(work))
    await call.services.fleet.announced()
    return answer


async def move(call: Call) -> Answer:
    """POST /v1/nodes/{node}/move: to another group, whose release is its target then."""

    async def work(conn: Any, changed: Changed) -> responses.DetailedNode:
        node = await node_views.find(conn, call.path["node"])
        group = await _group(conn, call.body.group)
        if group != node["group_id"]:
            if not call.body.allow_unfit:
                await compatibility.refuse_move(conn, node["id"], group, call.body.group)
            # First: who waits for a locked node holds up no other decision.
            await conn.execute(SQL["lock"], node["id"])
            generation = await conn.fetchval(SQL["take_generation"])
            await conn.execute(SQL["move"], node["id"], group, generation)
            changed.nodes.add(str(node["id"]))
            await call.audit(conn, "node.move", node["name"], {"group": call.body.group})
        return await node_views.describe(conn, node["id"])

    return await call.write(work, status=200)


async def revoke(call: Call) -> Answer:
    """POST /v1/nodes/{node}/revoke: all its credentials."""

    async def work(conn: Any, changed: Changed) -> None:
        node = await node_views.find(conn, call.path["node"])
        changed.credentials |= await _revoke(conn, node["id"], call.services.clock.now())
        await call.audit(conn, "node.revoke", node["name"], {})

    return await call.write(work, status=204)


async def retry(call: Call) -> Answer:
    """POST /v1/nodes/{node}/retry: a failed generation is tried again with the next poll."""

    async def work(conn: Any, changed: Changed) -> None:
        node = await node_views.find(conn, call.path["node"])
        await conn.execute(SQL["retry"], node["id"])
        changed.nodes.add(str(node["id"]))
        await call.audit(conn, "node.retry", node["name"], {})

    return await call.write(work, status=204)


async def remove(call: Call) -> Answer:
    """DELETE /v1/nodes/{node}: revoked and out of the lists; its logs stay and its name is free."""

    async def work(conn: Any, changed: Changed) -> None:
        node = await node_views.find(conn, call.path["node"])
        now = call.services.clock.now()
        changed.credentials |= await _revoke(conn, node["id"], now)
        await conn.execute(SQL["end_syncs"], node["id"], now)
        await conn.execute(SQL["clear_warnings"], node["id"], now)
        await conn.execute(SQL["remove"], node["id"], now)
        changed.nodes.add(str(node["id"]))
        await call.audit(conn, "node.remove", node["name"], {"id": str(node["id"])})

    return await call.write(work, status=204)


async def _admit(conn: Any, changed: Changed, body: wire.Join, token: Any, now: datetime) -> UUID:
    """The node that a fresh join token makes, or gives a new disk to; returns its id."""
    existing = await conn.fetchrow(SQL["find_by_name"], body.name)
    if token["rejoin"] is not None:
        if body.name != token["rejoin"]:
            raise ProblemError("name_taken", f"the token is for {token['rejoin']} to join again", field="name")
        if existing is None:
            raise ProblemError("unknown_node", f"the node {body.name} was removed; join as a new one", field="name")
        changed.credentials |= await _revoke(conn, existing["id"], now)
        await conn.execute(SQL["end_syncs"], existing["id"], now)
        await conn.execute(SQL["forget_functions"], existing["id"])
        await conn.execute(SQL["rejoin"], existing["id"], body.labels, body.capabilities, body.protocol, now)
        await conn.execute(SQL["rejoin_presence"], existing["id"], now)
        changed.nodes.add(str(existing["id"]))
        id: UUID = existing["id"]
        return id
    if existing is not None:
        raise ProblemError(
            "name_taken",
            f"there is a node {body.name}: choose another name, remove that node, or, where its disk was lost, make a "
            f"token with `skerry node token --rejoin {body.name}`",
            field="name",
        )
    id = uuid4()
    await conn.execute(SQL["add"], id, body.name, body.labels, body.capabilities, body.protocol, token["group_id"], now)
    await conn.execute(SQL["add_presence"], id, now)
    return id


async def _group(conn: Any, name: str) -> UUID:
    id: UUID | None = await conn.fetchval(SQL["group"], name)
    if id is None:
        raise ProblemError("unknown_group", f"there is no group {name}", field="group")
    return id


async def _revoke(conn: Any, node_id: UUID, now: datetime) -> set[str]:
    """Revoke all credentials of a node; return the ids of those that weren't."""
    return {row["id"] for row in await conn.fetch(SQL["revoke_credentials"], node_id, now)}


def _with(token: str, fingerprint: str) -> str:
    return f"{token}.{fingerprint}" if fingerprint else token
