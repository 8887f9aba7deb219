"""Which nodes can't run a release, by their capabilities: checked before a release is made or a node moves to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from msgspec import Struct

from control.problems import ProblemError
from control.protocol.counts import counted
from control.storage import queries
from control.storage.connection import Connection
from control.sync import requirements


class SameDigest(NamedTuple):
    """Capabilities that nodes of a group share, and their digest."""

    digest: str
    capabilities: dict[str, Any]


class WithoutDigest(NamedTuple):
    """Capabilities that a node sent without a digest, as JSON, and how many nodes of the group sent the same."""

    capabilities: str
    nodes: int
    name: str


class WithDigest(NamedTuple):
    """A node of a group, and how many nodes of it have the same capabilities."""

    name: str
    nodes: int


class NodeCapabilities(NamedTuple):
    """A node's name, schema version and capabilities."""

    name: str
    schema_version: int
    capabilities: dict[str, Any]


class ManifestRow(NamedTuple):
    """A function's name and manifest."""

    name: str
    manifest: dict[str, Any]


SQL = queries.load("compatibility")
NEXT_CAPABILITIES = SQL.rows("next_capabilities", SameDigest)
WITH_DIGEST = SQL.rows("with_digest", WithDigest)
WITHOUT_DIGEST = SQL.rows("without_digest", WithoutDigest)
NODE_CAPABILITIES = SQL.rows("node_capabilities", NodeCapabilities)
STEPPED = SQL.value("stepped", int)
FLOOR = SQL.value("floor", int)
MANIFESTS = SQL.rows("manifests", ManifestRow)

NAMED = 20
"""Maximum nodes that an answer names; further ones are only counted."""
SHOWN = 5
"""Maximum nodes that a problem's text names."""


class UnfitNode(Struct):
    """A node that can't run a release."""

    name: str
    lacks: list[str]
    """What the release needs and the node doesn't know, for people."""


class Unfit(Struct):
    """The nodes of a group that can't run a release, as far as their capabilities are known."""

    count: int
    nodes: list[UnfitNode]
    """The first 20 by name."""


@dataclass(slots=True)
class SameCapabilities:
    """Nodes of a group that have the same capabilities."""

    capabilities: Mapping[str, Any]
    nodes: int
    names: list[str] = field(default_factory=list)
    """The names of the first `NAMED` nodes."""


async def group_capabilities(conn: Connection, group_id: str) -> list[SameCapabilities]:
    """Return the capabilities of the nodes of a group.

    Read them in a separate transaction: the release's must not conflict with a node that sends new ones meanwhile.
    Nodes with the same capabilities have the same digest. There are few digests, and each is found by index.
    """
    found: dict[str, SameCapabilities] = {}
    for row in await conn.fetch(WITHOUT_DIGEST, group_id, NAMED):
        kind = found.setdefault(row.capabilities, SameCapabilities(orjson.loads(row.capabilities), row.nodes))
        kind.names.append(row.name)
    kinds, digest = list(found.values()), ""
    while (same := await conn.fetchrow(NEXT_CAPABILITIES, group_id, digest)) is not None:
        digest = same.digest
        nodes = await conn.fetch(WITH_DIGEST, group_id, digest, NAMED)
        kinds.append(SameCapabilities(same.capabilities, nodes[0].nodes, [node.name for node in nodes]))
    return kinds


async def stepped(conn: Connection, above: int, upto: int) -> list[str]:
    """Return the schema changes with steps above one number, up to another, as texts."""
    # Most releases bring no change, and each query is a round trip to the database.
    return [f"change {number}" for number in await conn.column(STEPPED, above, upto)] if upto > above else []


def unfit(
    kinds: Iterable[SameCapabilities], manifests: Mapping[str, Mapping[str, Any]], changes: Sequence[str] = ()
) -> Unfit:
    """Return the nodes that can't run functions with these manifests, or apply these `stepped` changes."""
    needs = requirements.needs(manifests)
    if changes:
        needs[requirements.STEPS] = list(changes)
    found = Unfit(0, [])
    for same in kinds:
        lacking = [requirements.shown(need, needs[need]) for need in requirements.lacks(same.capabilities, needs)]
        if lacking:
            found.count += same.nodes
            found.nodes += [UnfitNode(name, lacking) for name in same.names]
    found.nodes = sorted(found.nodes, key=lambda node: node.name)[:NAMED]
    return found


def refusals(found: Unfit, group: str) -> list[ProblemError]:
    """Return nodes_unfit if there are such nodes."""
    if not found.count:
        return []
    texts = [f"{node.name} lacks {' and '.join(node.lacks)}" for node in found.nodes]
    return [
        ProblemError(
            "nodes_unfit",
            f"{counted(found.count, 'node')} can't run this release of group {group}: "
            f"{requirements.listed(texts, SHOWN, found.count, '; ')}. Upgrade their edge runtime, move them to another "
            "group (`skerry node move`), or go on with allow_unfit (--allow-unfit): they refuse the release then, and "
            "serve their old one on",
            field="allow_unfit",
        )
    ]


def refuse(found: Unfit, group: str) -> None:
    """Refuse a release with such nodes. Raises: ProblemError nodes_unfit, when there are any."""
    for problem in refusals(found, group):
        raise problem


async def unfit_for(conn: Connection, node_id: UUID, group_id: UUID) -> Unfit:
    """Return the node if it can't run the release of the group that it is to be moved to."""
    node = await conn.one(NODE_CAPABILITIES, node_id)
    manifests = dict(await conn.fetch(MANIFESTS, group_id))
    changes = await stepped(conn, node.schema_version, await conn.fetchval(FLOOR, group_id))
    return unfit([SameCapabilities(node.capabilities, 1, [node.name])], manifests, changes)
