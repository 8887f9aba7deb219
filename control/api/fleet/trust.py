"""Which nodes trust the CAs that control gives out: `GET /v1/certificates/nodes`."""

from datetime import datetime
from typing import NamedTuple

from control.api.bodies import fleet_responses as bodies
from control.api.operations import ApiCall, Reply, operation
from control.storage import queries
from control.storage.connection import Connection

MOST_NAMED = 1000
"""Nodes that are named at most; more are counted."""


class TrustCounts(NamedTuple):
    """How many nodes there are, and how many trust what was asked for."""

    nodes: int
    have: int


class LackingNode(NamedTuple):
    """A node that trusts something else, or hasn't said what."""

    name: str
    state: str
    trust: str
    told_at: datetime | None


SQL = queries.load("trust")
COUNTS = SQL.rows("counts", TrustCounts)
LACKING = SQL.rows("lacking", LackingNode)


@operation(
    "GET",
    "/v1/certificates/nodes",
    "Which nodes trust the CAs that the replica which answers gives out",
    role="read",
    everywhere=False,
    answers={200: bodies.NodesTrust},
)
async def nodes(call: ApiCall) -> Reply:
    """Of the groups that the operator may see."""
    digest, groups = call.services.certificates.trust.digest, call.operator.rights.groups("read")

    async def work(conn: Connection) -> bodies.NodesTrust:
        counts = await conn.one(COUNTS, digest, groups)
        rows = await conn.fetch(LACKING, digest, groups, MOST_NAMED)
        return bodies.NodesTrust(digest, counts.nodes, counts.have, [bodies.OtherTrust(*row) for row in rows])

    return await call.read(work)
