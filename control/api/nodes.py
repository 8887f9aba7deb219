"""Nodes: their requests (to join, for another credential) and operations on them (R 1.1, 1.2, 7.3)."""

from datetime import datetime
from typing import Annotated, NamedTuple
from uuid import UUID, uuid4

from msgspec import Meta, Struct, field

from control import tokens
from control.access import auth, join_tokens
from control.access.auth import AuthError
from control.access.rights import Role
from control.api import node_views, release_bodies, release_making
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.wire import Body, LabelKey, LabelValue, Message, Name, Text
from control.storage import access_changes, idempotency, queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.sync import change_effects, compatibility, own_targets, requirements
from control.sync.change_effects import ChangeEffects
from control.sync.compatibility import Unfit
from control.sync.monitor import CLONED
from control.sync.node_state import clean


class RowCounts(Message):
    """``PUT /v1/nodes/self/row-counts``: roughly how many rows a node's tables have."""

    counts: Annotated[dict[Text, Annotated[int, Meta(ge=0, le=10_001)]], Meta(max_length=200)]
    """By table, in lower case; 10,001 for more than 10,000."""
    estimates: Annotated[dict[Text, Annotated[int, Meta(ge=0, le=10**12)]], Meta(max_length=200)] = field(
        default_factory=dict
    )
    """For tables with more than 10,000 rows: an estimate from their keys."""


class MoveNode(Body, frozen=True):
    group: Name
    allow_unfit: bool = False
    """Move it even if it can't run the group's release."""
    allow_loss: bool = False
    """Move it even if the group's schema changes can lose rows that it has."""
    allow_stall: bool = False
    """Move it even if these changes would block its writers for longer than the setting `stall_limit`."""


class RenameNode(Body, frozen=True):
    name: Name


class LabelNode(Body, frozen=True):
    """Labels named in neither field stay unchanged."""

    set: Annotated[dict[LabelKey, LabelValue], Meta(max_length=100)] = field(default_factory=dict)
    remove: Annotated[list[LabelValue], Meta(max_length=100)] = field(default_factory=list)
    """Keys to remove; keys that the node doesn't have are ignored."""


class MovePlan(ChangeEffects):
    """What the move of a node would change for it."""

    node: str
    group: str
    changes: release_bodies.Changes
    unfit: Unfit
    """The node, if it can't run the group's release."""


class StoredJoinToken(NamedTuple):
    """A join token. `attempt`, `node_id` and `used_at` are None until it is used."""

    secret_hash: str
    group_id: UUID
    expires_at: datetime
    attempt: str | None
    node_id: UUID | None
    used_at: datetime | None
    rejoin: str | None
    rejoin_node: UUID | None
    revoked_at: datetime | None


class JoinedNode(NamedTuple):
    """What a join returns about a node."""

    name: str
    group_name: str
    removed_at: datetime | None


SQL = queries.load("nodes")
TAKE_GENERATION = SQL.value("take_generation", int)
JOIN_TOKENS = queries.load("join_tokens")
JOIN_TOKEN = JOIN_TOKENS.rows("token", StoredJoinToken)
CREDENTIAL_USED = SQL.value("credential_used", bool)
REVOKE_CREDENTIALS = SQL.value("revoke_credentials", str)
REVOKE_UNUSED = SQL.value("revoke_unused", str)
FIND_BY_NAME = SQL.optional("find_by_name", UUID)
NAME_AND_GROUP = SQL.rows("name_and_group", JoinedNode)
LOCK = SQL.value("lock", UUID)
LABELS = SQL.value("labels", dict[str, str])
ABANDON = queries.load("restores")["abandon"]
IS_CLONED = SQL.optional("is_cloned", bool)


@operation(
    "POST",
    "/v1/nodes",
    "Join",
    role="join",
    answers={201: wire.Joined},
    errors=("token_expired", "token_used", "token_revoked", "name_taken", "too_many_acts"),
)
async def join(call: ApiCall, body: wire.Join) -> Reply:
    """Join with a join token (R 1.1, 1.2, 7.3).

    Repeating an attempt before its credential was used returns another credential, since the answer may be lost.
    """
    token_id, secret_hash = auth.bearer(call.scope, "join")
    for name, value in (("labels", body.labels), ("capabilities", body.capabilities)):
        requirements.check(name, value)

    async def work(conn: Connection) -> wire.Joined:
        now, changed = call.services.clock.now(), Changed()
        token = await conn.fetchrow(JOIN_TOKEN, token_id)
        if token is None or not tokens.same(token.secret_hash, secret_hash):
            raise AuthError("credentials_invalid", "the join token isn't known", "join_token_unknown")
        join_tokens.refuse_ended(token.expires_at, token.revoked_at, now)
        ended: set[str] = set()
        if token.node_id is None:
            action = "node.join" if token.rejoin is None else "node.rejoin"
            node_id, ended = await _admit(conn, changed, body, token, now)
            await conn.execute(JOIN_TOKENS["use"], token_id, body.attempt, node_id, now)
            if token.rejoin is not None:
                await join_tokens.end_for_node(conn, node_id, now, but=UUID(token_id))
        else:
            node_id = token.node_id
            used = await conn.fetchval(CREDENTIAL_USED, node_id, token.used_at)
            if token.attempt != body.attempt or used:
                raise AuthError("token_used", "a join token is good for one node; make another one", "token_used")
            call.services.node_limits.take("credentials", token_id, f"the join token {token_id}")
            # The first answer was lost: its credential is replaced.
            action = "node.join-again"
            ended = await _revoke(conn, node_id, now)
        changed.credentials |= ended
        node = await conn.one(NAME_AND_GROUP, node_id)
        if node.removed_at is not None or node.name != body.name:
            raise AuthError("token_used", "the token was used for another node; make another one", "token_used")
        credential = tokens.new_token("node")
        await conn.execute(SQL["add_credential"], credential.id, node_id, credential.secret_hash, now, None)
        await access_changes.record_credential(conn, now, credential, node_id)
        await access_changes.record(conn, now, "join-token-ended", token_id)
        await call.audit(
            conn,
            action,
            node.name,
            {"join_token": token_id},
            before={"credentials": sorted(ended)} if ended else {},
            after={"id": str(node_id), "group": node.group_name, "credentials": [str(credential.id)]},
            node=node.name,
        )
        await changed.announce(conn)
        return wire.Joined(str(node_id), credential.text, node.group_name, call.services.settings.credential_life)

    answer = Reply(201, await call.services.databases.joins.transaction(work))
    await call.services.fleet.announced()
    return answer


@operation(
    "POST",
    "/v1/nodes/self/credential",
    "Rotate the node's credential",
    role="node",
    ended="",
    answers={201: wire.Rotated},
    errors=("too_many_acts",),
)
async def rotate(call: ApiCall) -> Reply:
    """Make a new credential. The old one ends when the new one is first used."""
    node_id, old = call.node_id, call.credential_id
    call.services.node_limits.take("credentials", node_id, _called(call))

    async def work(conn: Connection) -> wire.Rotated:
        # Whoever has a revoked credential may have asked before it was, and held the body back.
        await auth.refuse_revoked(conn, old)
        if await conn.fetchval(IS_CLONED, node_id):
            # The caller would lock out the other one, and nobody has said which of them is the node.
            raise ProblemError("node_cloned", f"{CLONED}: until then the credential isn't rotated")
        now = call.services.clock.now()
        revoked = await conn.column(REVOKE_UNUSED, node_id, old, now)
        credential = tokens.new_token("node")
        await conn.execute(SQL["add_credential"], credential.id, node_id, credential.secret_hash, now, old)
        await access_changes.record_credential(conn, now, credential, node_id, old)
        name = (await conn.one(NAME_AND_GROUP, node_id)).name
        before, after = {"credentials": sorted({old, *revoked})}, {"credentials": [old, str(credential.id)]}
        await call.audit(conn, "node.rotate", name, before=before, after=after, node=name)
        await Changed(credentials=set(revoked)).announce(conn)
        return wire.Rotated(credential.text, call.services.settings.credential_life)

    answer = Reply(201, await call.services.databases.joins.transaction(work))
    await call.services.fleet.announced()
    return answer


@operation(
    "POST",
    "/v1/nodes/self/sql",
    "Tell of SQL that somebody has run on the node",
    role="node",
    answers={204: None},
    errors=("too_many_acts",),
)
async def sql_run(call: ApiCall, body: wire.SqlRun) -> Reply:
    """Record SQL that somebody has run, once for each id."""
    call.services.node_limits.take("SQL that was run", call.node_id, _called(call))

    async def work(conn: Connection) -> None:
        await auth.refuse_revoked(conn, call.credential_id)
        node = await conn.one(NAME_AND_GROUP, call.node_id)
        texts = {"statement": body.statement, "reason": body.reason, "user": body.user}
        details = {name: clean(text) for name, text in texts.items() if text}
        at = body.at.isoformat(timespec="milliseconds")
        details |= {
            "run": body.id,
            "kind": body.kind,
            "at": at,
            "rows": "unknown" if body.rows is None else str(body.rows),
        }

        async def record(conn: Connection) -> None:
            await call.audit(conn, "node.sql", node.name, details, node=node.name)

        now = call.services.clock.now()
        # A node repeats the request if the answer was lost.
        await idempotency.once(conn, now, f"node {call.node_id}", body.id, body.id, 204, record)

    await call.services.databases.joins.transaction(work)
    return Reply(204, None)


@operation(
    "PUT",
    "/v1/nodes/self/row-counts",
    "Tell how many rows the node's tables have",
    role="node",
    answers={204: None},
)
async def tell_rows(call: ApiCall, body: RowCounts) -> Reply:
    """Keep how many rows the node's tables have, for plans of releases that can lose rows."""
    now = call.services.clock.now()
    await call.services.databases.joins.transaction(
        lambda conn: conn.execute(change_effects.LOSSES["tell"], call.node_id, body.counts, now, body.estimates)
    )
    return Reply(204)


@operation(
    "POST",
    "/v1/nodes/{node}/move",
    "Move a node to another group",
    role="deploy",
    everywhere=False,
    answers={200: node_views.DetailedNode},
    errors=("unknown_node", "unknown_group", "nodes_unfit", "loss_not_allowed", "stall_not_allowed"),
)
async def move(call: ApiCall, body: MoveNode) -> Reply:
    """Move a node to another group, whose release becomes its target."""
    if kept := await call.replayed(200):
        return kept
    await _check_unchecked(call, "deploy", body.group)

    async def work(conn: Connection, changed: Changed) -> node_views.DetailedNode:
        node = await node_views.find(conn, call.operator, "deploy", call.path["node"])
        call.operator.need("deploy", body.group)
        group = await node_views.group(conn, body.group)
        if group != node.group_id:
            if not body.allow_unfit:
                compatibility.refuse(await compatibility.unfit_for(conn, node.id, group), body.group)
            change_effects.refuse(
                await change_effects.of_move(conn, node.id, group),
                f"the move to group {body.group}",
                call.services.settings.stall_limit,
                allow_loss=body.allow_loss,
                allow_stall=body.allow_stall,
            )
            # Before the generation is taken, so that waiting for a locked node delays no other decision.
            await conn.fetchval(LOCK, node.id)
            generation = await conn.fetchval(TAKE_GENERATION)
            await conn.execute(SQL["move"], node.id, group, generation)
            changed.nodes.add(str(node.id))
            # Their maker may have no rights in the new group.
            await join_tokens.end_for_node(conn, node.id, call.services.clock.now())
            before, after = {"group": node.group_name}, {"group": body.group}
            await call.audit(conn, "node.move", node.name, {"generation": generation}, before=before, after=after)
        return await node_views.describe(conn, node.id, call.services.settings)

    return await call.write(work, status=200)


async def _check_unchecked(call: ApiCall, role: Role, group: str) -> None:
    """Check the schema changes that the node gets by moving to a group and that no control has checked yet."""

    async def find(conn: Connection) -> tuple[UUID, UUID]:
        node = await node_views.find(conn, call.operator, role, call.path["node"])
        return node.id, await node_views.group(conn, group)

    db = call.services.databases.writes
    # Without the right to it, the caller is refused later.
    if call.operator.rights.allows(role, group):
        await change_effects.check_for_move(db, call.services.checks.of(call.operator.id), *await db.read(find))


class MoveQuery(Struct, forbid_unknown_fields=True):
    group: wire.Name


@operation(
    "GET",
    "/v1/nodes/{node}/move",
    "What the move of a node would change",
    role="read",
    everywhere=False,
    answers={200: MovePlan},
    errors=("unknown_node", "unknown_group"),
)
async def plan_move(call: ApiCall, query: MoveQuery) -> Reply:
    """Plan a move: what it would change for the node. Nothing is refused for that."""
    name: str = query.group
    await _check_unchecked(call, "read", name)

    async def work(conn: Connection) -> MovePlan:
        node = await node_views.find(conn, call.operator, "read", call.path["node"])
        if not call.operator.rights.allows("read", name):
            raise node_views.unknown_group(name)
        group = await node_views.group(conn, name)
        runs = await node_views.describe(conn, node.id, call.services.settings)
        before = {f.name: (f.version, f.sha256) for f in runs.functions}
        changes = await release_making.changes_to(conn, before, runs.schema_version, name)
        unfit = await compatibility.unfit_for(conn, node.id, group)
        effects = await change_effects.of_move(conn, node.id, group)
        return MovePlan(effects.losses, effects.stalls, node.name, name, changes, unfit)

    return await call.read(work)


@operation(
    "POST",
    "/v1/nodes/{node}/rename",
    "Give a node another name",
    role="admin",
    everywhere=False,
    answers={200: node_views.DetailedNode},
    errors=("unknown_node", "name_taken"),
)
async def rename(call: ApiCall, body: RenameNode) -> Reply:
    """Rename a node, which learns its name by its next poll."""
    name: str = body.name

    async def work(conn: Connection, changed: Changed) -> node_views.DetailedNode:
        node = await node_views.find(conn, call.operator, "admin", call.path["node"])
        if node.name != name:
            if await conn.fetchrow(node_views.BY_NAME, name) is not None:
                raise ProblemError("name_taken", f"there is a node {name}: choose another name", field="name")
            await conn.execute(SQL["rename"], node.id, name)
            await conn.execute(SQL["rename_in_tokens"], node.id, name)
            now = call.services.clock.now()
            await access_changes.record(conn, now, "node-renamed", node.id, {"name": name})
            changed.nodes.add(str(node.id))
            before, after = {"name": node.name}, {"name": name, "id": str(node.id)}
            await call.audit(conn, "node.rename", node.name, before=before, after=after)
        return await node_views.describe(conn, node.id, call.services.settings)

    return await call.write(work, status=200)


@operation(
    "POST",
    "/v1/nodes/{node}/labels",
    "Set labels of a node, and take others away",
    role="deploy",
    everywhere=False,
    answers={200: node_views.DetailedNode},
    errors=("unknown_node",),
)
async def label(call: ApiCall, body: LabelNode) -> Reply:
    """Set some of its labels, and remove others."""
    given: dict[str, str] = body.set
    gone: list[str] = body.remove
    both = sorted(given.keys() & set(gone))
    if both:
        raise ProblemError("invalid_body", f"it is to be set and to be removed: {both[0]}", field="remove")

    async def work(conn: Connection, _changed: Changed) -> node_views.DetailedNode:
        node = await node_views.find(conn, call.operator, "deploy", call.path["node"])
        old = await conn.fetchval(LABELS, node.id)
        new = {key: value for key, value in {**old, **given}.items() if key not in gone}
        if new != old:
            requirements.check("labels", new)
            await conn.execute(SQL["label"], node.id, new)
            touched = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            before = {"labels": {key: old[key] for key in touched if key in old}}
            after = {"labels": {key: new[key] for key in touched if key in new}}
            await call.audit(conn, "node.label", node.name, before=before, after=after)
        return await node_views.describe(conn, node.id, call.services.settings)

    return await call.write(work, status=200)


@operation(
    "POST",
    "/v1/nodes/{node}/revoke",
    "Revoke a node's credentials",
    role="admin",
    everywhere=False,
    answers={204: None},
    errors=("unknown_node",),
)
async def revoke(call: ApiCall) -> Reply:
    """Revoke all credentials of the node, and its join tokens."""

    async def work(conn: Connection, changed: Changed) -> None:
        node = await node_views.find(conn, call.operator, "admin", call.path["node"])
        now = call.services.clock.now()
        ended = await _revoke(conn, node.id, now)
        changed.credentials |= ended
        await join_tokens.end_for_node(conn, node.id, now)
        await conn.execute(SQL["end_syncs"], node.id, now)
        await conn.execute(SQL["clear_warnings"], node.id, now)
        await conn.execute(SQL["set_revoked"], node.id, now)
        changed.nodes.add(str(node.id))
        await call.audit(conn, "node.revoke", node.name, before={"credentials": sorted(ended)})

    return await call.write(work, status=204)


@operation(
    "POST",
    "/v1/nodes/{node}/retry",
    "Let a node try again now",
    role="deploy",
    everywhere=False,
    answers={204: None},
    errors=("unknown_node",),
)
async def retry(call: ApiCall) -> Reply:
    """Let the node try a failed generation again with its next poll."""

    async def work(conn: Connection, changed: Changed) -> None:
        node = await node_views.find(conn, call.operator, "deploy", call.path["node"])
        await conn.execute(SQL["retry"], node.id)
        changed.nodes.add(str(node.id))
        await call.audit(conn, "node.retry", node.name)

    return await call.write(work, status=204)


@operation(
    "DELETE",
    "/v1/nodes/{node}",
    "Remove a node",
    role="admin",
    everywhere=False,
    answers={204: None},
    errors=("unknown_node",),
)
async def remove(call: ApiCall) -> Reply:
    """Remove a node: its credentials are revoked and its name is free; its logs stay."""

    async def work(conn: Connection, changed: Changed) -> None:
        node = await node_views.find(conn, call.operator, "admin", call.path["node"])
        now = call.services.clock.now()
        ended = await _revoke(conn, node.id, now)
        changed.credentials |= ended
        await join_tokens.end_for_node(conn, node.id, now)
        await conn.execute(SQL["end_syncs"], node.id, now)
        await conn.execute(SQL["clear_warnings"], node.id, now)
        await conn.execute(ABANDON, node.id, now)
        await conn.execute(SQL["remove"], node.id, now)
        await access_changes.record(conn, now, "node-removed", node.id)
        changed.nodes.add(str(node.id))
        before = {"id": str(node.id), "group": node.group_name, "credentials": sorted(ended)}
        await call.audit(conn, "node.remove", node.name, before=before)

    return await call.write(work, status=204)


async def _admit(
    conn: Connection, changed: Changed, body: wire.Join, token: StoredJoinToken, now: datetime
) -> tuple[UUID, set[str]]:
    """Create a node for an unused join token, or let a node join again with a new disk.

    Return its id, and the ids of the credentials that this ended.
    """
    if token.rejoin is not None:
        if body.name != token.rejoin:
            raise ProblemError("name_taken", f"the token is for {token.rejoin} to join again", field="name")
        if token.rejoin_node is None:
            raise join_tokens.token_revoked()
        node_id = token.rejoin_node
        ended = await _revoke(conn, node_id, now)
        await conn.execute(SQL["end_syncs"], node_id, now)
        await conn.execute(SQL["forget_functions"], node_id)
        await own_targets.disown(conn, node_id)
        await conn.execute(SQL["rejoin"], node_id, body.labels, body.capabilities, body.protocol, now)
        await conn.execute(SQL["rejoin_presence"], node_id, now)
        changed.nodes.add(str(node_id))
        return node_id, ended
    existing = await conn.fetchval(FIND_BY_NAME, body.name)
    if existing is not None:
        raise ProblemError(
            "name_taken",
            f"there is a node {body.name}: choose another name, remove that node, or, where its disk was lost, make a "
            f"token with `skerry node token --rejoin {body.name}`",
            field="name",
        )
    id = uuid4()
    await conn.execute(SQL["add"], id, body.name, body.labels, body.capabilities, body.protocol, token.group_id, now)
    await conn.execute(SQL["add_presence"], id, now)
    told = {"name": body.name, "labels": body.labels, "protocol": body.protocol, "group": str(token.group_id)}
    await access_changes.record(conn, now, "node-joined", id, told)
    return id, set()


def _called(call: ApiCall) -> str:
    """Return how the log names the node that calls."""
    node = call.services.fleet.nodes.get(call.node_id)
    return f"node {call.node_id if node is None else node.name}"


async def _revoke(conn: Connection, node_id: UUID, now: datetime) -> set[str]:
    """Revoke all credentials of a node; return the ids of those that were valid."""
    await access_changes.record(conn, now, "node-revoked", node_id)
    return set(await conn.column(REVOKE_CREDENTIALS, node_id, now))
