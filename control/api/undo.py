"""Rollbacks with nodes' data: what they would do, by what is at the store, and how far they have come."""

from uuid import UUID

from control.api import backups, node_views, pagination, release_bodies
from control.api.operations import ApiCall, Reply, operation
from control.api.release_making import RELEASE, rollback_target, to_release
from control.api.services import Services
from control.backups import undo
from control.backups.targets import AtTransaction, Latest
from control.problems import ProblemError
from control.storage.connection import Connection

SECONDS = 20.0
"""For how long a plan compares rows, one node after the other."""


async def at_store(services: Services, group: str, above: int | None = None) -> undo.AtStore:
    """Look up at the store which nodes of a group can't go back; `above`: the number of the release to which the group
    goes, that of a rollback if not given.

    Raises: ProblemError unknown_group, when there is no such group; and as `Store` and `Database` do.
    """

    async def read(conn: Connection) -> undo.Undo | None:
        found = await to_release(conn, group)
        to = await rollback_target(conn, found) if above is None else above
        return None if to is None else await undo.read(conn, found.id, to, {})

    undone = await services.db.read(read)
    return {} if undone is None else await undo.look_up(services.states, services.clock, undone)


async def compare(services: Services, plan: release_bodies.UndoPlan | None) -> None:
    """Add to a plan which rows nodes lose, for as many of its nodes as there is time for."""
    until = services.clock.monotonic() + SECONDS
    for each in [] if plan is None else plan.nodes:
        if services.clock.monotonic() > until:
            return
        try:
            lineage, _, transaction = each.position.partition("/")
            then = await services.states.find(each.id, AtTransaction(lineage, int(transaction)))
            newest = await services.states.find(each.id, Latest())
        except ProblemError as problem:
            if problem.status >= 500:
                raise
            each.tables_unknown = problem.detail
            continue
        compared = await services.comparison.compare(each.id, then, each.id, newest)
        each.at, each.newest_at = then.at, newest.at
        each.newer = max(0.0, (newest.at - then.at).total_seconds())
        each.tables, each.tables_unknown = compared.tables, compared.unknown


async def counts(conn: Connection, release_id: UUID, number: int) -> release_bodies.UndoCounts | None:
    """Return how far the undo of a rollback's release has come; None if that leaves nodes' data."""
    found = {row.outcome: row.nodes for row in await conn.fetch(undo.COUNTS, release_id)}
    return release_bodies.UndoCounts(number, **found) if found else None


async def counts_of_undone(conn: Connection, group_id: UUID, number: int) -> release_bodies.UndoCounts | None:
    """Return how far the undo has come that took nodes' data back from a release; None if none did."""
    found = await conn.fetchrow(undo.OF_RELEASE, group_id, number)
    return None if found is None else await counts(conn, found.id, found.number)


@operation(
    "GET",
    "/v1/releases/{group}/{number}/restores",
    "What came of nodes' data with a rollback, by node",
    role="read",
    everywhere=False,
    answers={200: pagination.Page[backups.NodeRestore]},
    errors=("unknown_group", "unknown_release"),
)
async def list_restores(call: ApiCall, query: pagination.Paging) -> Reply:
    """List the restores of a rollback with data; nodes that couldn't go back have a failed one without a position."""
    group, number = call.path["group"], call.path["number"]
    after = pagination.read_cursor(query.cursor, (str,)) or ("",)

    async def work(conn: Connection) -> pagination.Page[backups.NodeRestore]:
        if not call.operator.rights.allows("read", group):
            raise node_views.unknown_group(group)
        await node_views.group(conn, group)
        release = await conn.fetchrow(RELEASE, group, number)
        if release is None:
            raise ProblemError("unknown_release", f"group {group} has no release {number}", field="number")
        return await pagination.fill(
            lambda after, count: conn.fetch(undo.RESTORES, release.id, *after, count),
            pagination.each(backups.restore),
            lambda row: (row.node,),
            after,
            query.limit,
        )

    return await call.read(work)
