"""Reports of nodes about their syncs."""

from uuid import UUID

from control import wire
from control.api.bodies import requests
from control.api.operations import ApiCall, Reply
from control.problems import ProblemError
from control.sync import plan
from control.sync.effects import losses
from control.sync.reports import SyncReport, unknown_sync


async def put(call: ApiCall) -> Reply:
    """PUT /v1/syncs/{id}: a node's report of its sync. The same report again changes nothing."""
    try:
        sync_id = str(UUID(call.path["id"]))
    except ValueError:
        raise unknown_sync(call.path["id"]) from None
    update: wire.SyncUpdate = call.body
    _check(update)
    services = call.services
    services.heartbeats.seen(call.node_id, services.clock.now())
    return Reply(200, await services.reports.ask(SyncReport(sync_id, call.node_id, update)))


async def tell_rows(call: ApiCall) -> Reply:
    """PUT /v1/nodes/self/row-counts: what releases that can lose rows are shown with."""
    body: requests.RowCounts = call.body
    now = call.services.clock.now()
    await call.services.databases.joins.transaction(
        lambda conn: conn.execute(losses.SQL["tell"], call.node_id, body.counts, now, body.estimates)
    )
    return Reply(204)


def _check(update: wire.SyncUpdate) -> None:
    """Raises: ProblemError invalid_body, when the inventory is missing or contradicts itself."""
    if update.status == "succeeded" and update.inventory is None:
        raise ProblemError("invalid_body", "a success must say what the node now runs", field="inventory")
    if update.inventory is not None:
        wrong = plan.inconsistency(update.inventory)
        if wrong:
            raise ProblemError("invalid_body", wrong, field="inventory")
