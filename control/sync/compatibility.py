"""Which nodes can't run a release, by what they told: found before it is made, or before a node is moved to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from control.api import responses
from control.problems import ProblemError
from control.storage import queries
from control.sync import requirements

SQL = queries.load("fitness")

NAMED = 20
"""Nodes that an answer names; the others are counted."""
SHOWN = 5
"""Nodes that a problem's text names."""


@dataclass(slots=True)
class Told:
    """Nodes of a group that told the same of what they can run."""

    capabilities: Mapping[str, Any]
    nodes: int
    names: list[str] = field(default_factory=list)
    """The first `NAMED`."""


async def told(conn: Any, group: str) -> list[Told]:
    """Return what the nodes of a group can run; nothing where there is no such group.

    It is read apart from the release's own transaction: a node that says something else meanwhile must not be in its
    way. Nodes that tell the same have the same digest, of which there are few: each is looked for by index.
    """
    id = await conn.fetchval(SQL["group"], group)
    if id is None:
        return []
    found: dict[str, Told] = {}
    for row in await conn.fetch(SQL["told_without_digest"], id, NAMED):
        kind = found.setdefault(row["capabilities"], Told(orjson.loads(row["capabilities"]), row["nodes"]))
        kind.names.append(row["name"])
    kinds, digest = list(found.values()), ""
    while (row := await conn.fetchrow(SQL["next_told"], id, digest)) is not None:
        digest = row["digest"]
        names = [named["name"] for named in await conn.fetch(SQL["names"], id, digest, NAMED)]
        kinds.append(Told(row["capabilities"], await conn.fetchval(SQL["count"], id, digest), names))
    return kinds


def unfit(told: Iterable[Told], manifests: Mapping[str, Mapping[str, Any]]) -> responses.Unfit:
    """The nodes that can't run functions with these manifests."""
    needs = requirements.needs(manifests)
    found = responses.Unfit(0, [])
    for same in told:
        lacking = [requirements.shown(need, needs[need]) for need in requirements.lacks(same.capabilities, needs)]
        if lacking:
            found.count += same.nodes
            found.nodes += [responses.UnfitNode(name, lacking) for name in same.names]
    found.nodes = sorted(found.nodes, key=lambda node: node.name)[:NAMED]
    return found


def refuse(found: responses.Unfit, group: str) -> None:
    """ProblemError nodes_unfit where there are such nodes."""
    if not found.count:
        return
    texts = [f"{node.name} lacks {' and '.join(node.lacks)}" for node in found.nodes]
    raise ProblemError(
        "nodes_unfit",
        f"{found.count} {'nodes' if found.count > 1 else 'node'} can't run this release of group {group}: "
        f"{requirements.listed(texts, SHOWN, found.count, '; ')}. Upgrade their edge runtime, move them to another "
        "group (`skerry node move`), or go on with allow_unfit (--allow-unfit): they refuse the release then, and "
        "serve their old one on",
        field="allow_unfit",
    )


async def refuse_move(conn: Any, node_id: UUID, group_id: UUID, group: str) -> None:
    """ProblemError nodes_unfit where a node can't run the release of the group that it is to be moved to."""
    node = await conn.fetchrow(SQL["told_by"], node_id)
    manifests = {row["name"]: row["manifest"] for row in await conn.fetch(SQL["manifests"], group_id)}
    refuse(unfit([Told(node["capabilities"], 1, [node["name"]])], manifests), group)
