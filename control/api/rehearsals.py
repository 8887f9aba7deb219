"""Nodes' side of a rehearsal: what to try, and what came of it."""

from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from control.access import auth
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import wire
from control.rollouts import rules, store
from control.rollouts.store import StoredRollout
from control.storage.connection import Connection
from control.sync import node_state, plan
from control.sync.reconciler import REVISIONS, TEXTS, OpenedSync, plan_message

LEAST = timedelta(seconds=1)
"""The least time that a node is given, however late it asks."""


class Task(NamedTuple):
    """What a node's rehearsal is made from."""

    opened: OpenedSync
    seconds: float


@operation(
    "GET",
    "/v1/nodes/self/rehearsals/{rehearsal}",
    "Get the release that the node is to rehearse",
    role="node",
    answers={200: wire.RehearsalOrder},
    errors=("unknown_rehearsal",),
)
async def get_rehearsal(call: ApiCall) -> Reply:
    services = call.services
    now = services.clock.now()

    async def read(conn: Connection) -> Task:
        stored = await _rehearsal(conn, call)
        found = await node_state.read(conn, [call.node_id], [])
        node = found.rows.get(call.node_id)
        releases = await node_state.Targets().releases(conn, [str(stored.row.release_id)])
        if node is None or not releases:
            raise _unknown(call.path["rehearsal"])
        release, inventory = releases[str(stored.row.release_id)], found.inventories[node.id]
        revisions = plan.by_number(await conn.fetch(REVISIONS))
        if mismatch := plan.history_mismatch(inventory, revisions):
            raise ProblemError("history_mismatch", mismatch)
        work = plan.work(inventory, release, revisions)
        texts = {}
        if work.schema_changes:
            first, last = work.schema_changes[0].number, work.schema_changes[-1].number
            texts = {(number, revision): sql for number, revision, sql in await conn.fetch(TEXTS, first, last)}
        # Above all that the node's file can have, so that it isn't refused as an old one.
        generation = max(node.target_generation, node.ran_generation) + 1
        left = rules.rehearsal_left(stored.position, stored.rules, now)
        opened = OpenedSync(stored.rehearsal_id, generation, release, work, texts)
        return Task(opened, max(left, LEAST).total_seconds())

    task = await services.databases.joins.read(read)
    message = await plan_message(task.opened, services.store, task.seconds)
    return Reply(200, wire.RehearsalOrder(message, task.seconds))


@operation(
    "PUT",
    "/v1/nodes/self/rehearsals/{rehearsal}",
    "Tell what the node has found in a rehearsal",
    role="node",
    answers={204: None},
    errors=("unknown_rehearsal",),
)
async def tell_rehearsal(call: ApiCall, body: wire.RehearsalResult) -> Reply:
    """Store what the node has found; of several reports, the first counts."""
    now = call.services.clock.now()

    async def work(conn: Connection) -> None:
        await auth.refuse_revoked(conn, call.credential_id)
        stored = await _rehearsal(conn, call)
        await store.tell_rehearsal(conn, stored, UUID(call.node_id), body, now)

    await call.services.databases.joins.transaction(work)
    call.services.fleet.rollouts_due.set()
    return Reply(204, None)


async def _rehearsal(conn: Connection, call: ApiCall) -> StoredRollout:
    """Return the rollout whose rehearsal the node names. Raises: ProblemError unknown_rehearsal, when it isn't on."""
    name, _, attempt = call.path["rehearsal"].partition(".")
    try:
        stored = await store.by_release(conn, UUID(name))
    except ValueError:
        stored = None
    if stored is None or str(stored.row.attempt) != attempt or not stored.open or stored.row.step != rules.REHEARSAL:
        raise _unknown(call.path["rehearsal"])
    node = call.services.fleet.nodes.get(call.node_id)
    if node is None or node.group_id != str(stored.row.group_id):
        raise _unknown(call.path["rehearsal"])
    return stored


def _unknown(id: str) -> ProblemError:
    return ProblemError("unknown_rehearsal", f"the rehearsal {id} is over, or isn't one of this node's group")
