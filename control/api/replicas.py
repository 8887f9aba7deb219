"""The answering replica: other running ones, its settings, its certificates, and which nodes trust its CAs."""

import logging
import os
from datetime import datetime, timedelta
from typing import NamedTuple

from msgspec import Struct

from control.api import pagination
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import settings_in_force, version
from control.storage import queries
from control.storage.connection import Connection
from control.sync import fleet_cache


class CertificateInUse(Struct):
    what: str
    """`control`: the one that it shows its clients. `ca`: one that nodes should trust."""
    name: str
    sha256: str
    begins_at: datetime
    ends_at: datetime
    """Of `control`: the earliest end of a certificate in its chain to the CA, if that is before its own."""


class Certificates(Struct):
    """What a replica uses, and why changed files can't be used."""

    certificates: list[CertificateInUse]
    trust: str
    """The digest of the CAs that nodes should trust; '' if control has none to distribute."""
    notes: list[str]
    """A line for each certificate that has expired or will within 30 days, and for files that can't be used."""


class OtherTrust(Struct):
    """A node that doesn't trust the CAs that control distributes now."""

    name: str
    state: str
    trust: str
    """The digest of those that it trusts, `system` for those of its system, '' if it hasn't said."""
    told_at: datetime | None


class NodesTrust(Struct):
    """Which nodes trust the CAs that the answering replica distributes."""

    trust: str
    """The digest of these CAs; '' if it has none to distribute."""
    nodes: int
    have: int
    lacking: list[OtherTrust]
    """By name, at most 1,000."""


class RunningReplica(Struct):
    """A running replica of control."""

    id: str
    """The id of this run: after a restart it is different."""
    version: str | None
    """Number and commit as in `skerry --version`, with a `+` between them; null if it is too old to say."""
    answers: bool
    """Whether it is the answering one."""


AWAY = timedelta(seconds=30)
"""A replica that hasn't written its mark for this long counts as stopped. It writes one each second."""


LOG_LEVEL = "SKERRY_LOG_LEVEL"
MOST_NAMED = 1000
"""The most nodes that are named; more are only counted."""


class MarkRow(NamedTuple):
    """A replica's mark."""

    name: str
    version: str


class TrustCounts(NamedTuple):
    """How many nodes there are, and how many trust the given CAs."""

    nodes: int
    have: int


REPLICAS = queries.load("fleet").rows("replicas", MarkRow)
TRUST_SQL = queries.load("trust")
COUNTS = TRUST_SQL.rows("counts", TrustCounts)
LACKING = TRUST_SQL.rows("lacking", OtherTrust)


@operation(
    "GET",
    "/v1/replicas",
    "The replicas of control that run, and their versions",
    role="read",
    answers={200: pagination.Page[RunningReplica]},
)
async def running(call: ApiCall) -> Reply:
    """List the replicas that run, beginning with the one that answers."""
    own = call.services.fleet.mark.name
    after = call.services.clock.now() + fleet_cache.MARK_KEPT - AWAY

    async def work(conn: Connection) -> pagination.Page[RunningReplica]:
        others = [row for row in await conn.fetch(REPLICAS, after) if row.name != own]
        return pagination.Page(
            [
                # Its mark may not have been written yet.
                RunningReplica(_id(own), version.running().short, answers=True),
                *(RunningReplica(_id(row.name), row.version or None, answers=False) for row in others),
            ]
        )

    return await call.read(work)


@operation(
    "GET",
    "/v1/settings",
    "The settings that the replica which answers has, without secrets",
    role="admin",
    answers={200: pagination.Page[settings_in_force.SettingInForce]},
)
async def settings(call: ApiCall) -> Reply:
    """List the settings of the replica that answers."""
    live = call.services.live_settings
    found = settings_in_force.in_force(live.settings, origins=dict.fromkeys(live.named, "file"))
    level, given = logging.getLogger("skerry").getEffectiveLevel(), os.environ.get(LOG_LEVEL, "")
    name = logging.getLevelName(level).lower()
    origin: settings_in_force.Origin = "default" if level == logging.INFO else "flag"
    origin = "file" if live.has_level else "environment" if name == given else origin
    found.append(settings_in_force.SettingInForce(LOG_LEVEL, name, origin))
    return Reply(200, pagination.Page(sorted(found, key=lambda setting: setting.name)))


@operation(
    "GET",
    "/v1/certificates",
    "The certificates that the replica which answers has in use, and when they end",
    role="read",
    everywhere=False,
    answers={200: Certificates},
)
async def certificates(call: ApiCall) -> Reply:
    """List the certificates of the replica that answers."""
    held, reread = call.services.certificates, call.services.reread
    listed = [CertificateInUse(end.what, end.name, end.sha256, end.begins_at, end.ends_at) for end in held.ends]
    return Reply(200, Certificates(listed, held.trust.digest, reread.errors() + held.warnings()))


@operation(
    "GET",
    "/v1/ca",
    "The CA's certificate",
    role=None,
    answers={200: bytes},
    media="application/x-pem-file",
    errors=("unknown_ca",),
)
async def ca(call: ApiCall) -> Reply:
    """Give out the CA in PEM, to be compared with the fingerprint in a join token before it is trusted."""
    pem = call.services.certificates.trust.pem
    if not pem:
        raise ProblemError(
            "unknown_ca",
            "there is no CA to give out: control's certificate is to be trusted as the system trusts others",
        )
    return Reply(200, pem, ((b"content-type", b"application/x-pem-file"),))


@operation(
    "GET",
    "/v1/certificates/nodes",
    "Which nodes trust the CAs that the replica which answers gives out",
    role="read",
    everywhere=False,
    answers={200: NodesTrust},
)
async def nodes_trust(call: ApiCall) -> Reply:
    """Count the nodes of the groups that the operator may see."""
    digest, groups = call.services.certificates.trust.digest, call.operator.rights.groups("read")

    async def work(conn: Connection) -> NodesTrust:
        counts = await conn.one(COUNTS, digest, groups)
        lacking = await conn.fetch(LACKING, digest, groups, MOST_NAMED)
        return NodesTrust(digest, counts.nodes, counts.have, lacking)

    return await call.read(work)


def _id(mark: str) -> str:
    return mark.removeprefix(fleet_cache.MARK_PREFIX)
