"""The replicas of control that run, and their versions: `GET /v1/replicas`."""

from datetime import timedelta
from typing import NamedTuple

from control.api.bodies import fleet_responses as bodies
from control.api.bodies.responses import Page
from control.api.operations import ApiCall, Reply, operation
from control.protocol import version
from control.storage import queries
from control.storage.connection import Connection
from control.sync import replica_mark

AWAY = timedelta(seconds=30)
"""A replica that hasn't written its mark for so long is taken to have ended. It writes one each second."""


class MarkRow(NamedTuple):
    """A replica's mark."""

    name: str
    version: str


REPLICAS = queries.load("fleet").rows("replicas", MarkRow)


@operation(
    "GET",
    "/v1/replicas",
    "The replicas of control that run, and their versions",
    role="read",
    answers={200: Page[bodies.RunningReplica]},
)
async def running(call: ApiCall) -> Reply:
    """The one that answers first."""
    own = call.services.fleet.mark.name
    after = call.services.clock.now() + replica_mark.KEPT - AWAY

    async def work(conn: Connection) -> Page[bodies.RunningReplica]:
        others = [row for row in await conn.fetch(REPLICAS, after) if row.name != own]
        return Page(
            [
                # Its mark may not be written yet.
                bodies.RunningReplica(_id(own), version.running().short, answers=True),
                *(bodies.RunningReplica(_id(row.name), row.version or None, answers=False) for row in others),
            ]
        )

    return await call.read(work)


def _id(mark: str) -> str:
    return mark.removeprefix(replica_mark.PREFIX)
