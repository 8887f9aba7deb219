"""Reports of nodes about their syncs."""

import logging
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from control.api.bodies import requests
from control.api.operations import ApiCall, Reply, operation
from control.api.request_input import INVENTORY_BODY
from control.api.services import Services
from control.problems import ProblemError
from control.protocol import wire
from control.storage import queries
from control.sync import plan
from control.sync.effects import losses
from control.sync.reports import SyncReport, unknown_sync
from control.tracing import Tracing


class TracedSync(NamedTuple):
    """A sync that has ended, and the traced request that made its release."""

    started_at: datetime
    ended_at: datetime
    error_code: str
    traceparent: str
    number: int
    group_name: str
    node: str


TRACED = queries.load("syncs").rows("traced", TracedSync)

log = logging.getLogger("skerry.control")


@operation(
    "PUT",
    "/v1/syncs/{id}",
    "Report a sync",
    role="node",
    # An edge that knows no ended credentials sends a report that waits before all else, and drops it for good by this
    # code; only then it asks for another credential.
    ended="unknown_sync",
    answers={200: wire.SyncState},
    errors=("unknown_sync",),
    body_limit=INVENTORY_BODY,
)
async def put(call: ApiCall, body: wire.SyncUpdate) -> Reply:
    """A node's report of its sync. The same report again changes nothing."""
    try:
        sync_id = str(UUID(call.path["id"]))
    except ValueError:
        raise unknown_sync(call.path["id"]) from None
    _check(body)
    services = call.services
    services.heartbeats.seen(call.node_id, services.clock.now())
    state = await services.reports.ask(SyncReport(sync_id, call.node_id, body))
    tracing = services.tracing
    if tracing is not None and body.status == state.status != "running" and not state.late:
        await _trace(services, tracing, sync_id)
    return Reply(200, state)


@operation(
    "PUT",
    "/v1/nodes/self/row-counts",
    "Tell how many rows the node's tables have",
    role="node",
    answers={204: None},
)
async def tell_rows(call: ApiCall, body: requests.RowCounts) -> Reply:
    """What releases that can lose rows are shown with."""
    now = call.services.clock.now()
    await call.services.databases.joins.transaction(
        lambda conn: conn.execute(losses.SQL["tell"], call.node_id, body.counts, now, body.estimates)
    )
    return Reply(204)


async def _trace(services: Services, tracing: Tracing, sync_id: str) -> None:
    """Make the span of a sync that has ended, if it is traced. A database that doesn't answer costs the span alone."""
    if not tracing.is_sync_traced(sync_id):
        return
    try:
        sync = await services.databases.joins.read(lambda conn: conn.fetchrow(TRACED, sync_id))
    except ProblemError as problem:
        log.warning("the sync %s can't be traced: %s", sync_id, problem.detail)
        return
    if sync is not None:
        times, release = (sync.started_at, sync.ended_at), f"{sync.group_name} {sync.number}"
        tracing.sync_ended(
            sync_id, sync.traceparent, times, sync.error_code, node=sync.node, release=release, sync=sync_id
        )


def _check(update: wire.SyncUpdate) -> None:
    """Raises: ProblemError invalid_body, when the inventory is missing or contradicts itself."""
    if update.status == "succeeded" and update.inventory is None:
        raise ProblemError("invalid_body", "a success must say what the node now runs", field="inventory")
    if update.inventory is not None:
        wrong = plan.inconsistency(update.inventory)
        if wrong:
            raise ProblemError("invalid_body", wrong, field="inventory")
