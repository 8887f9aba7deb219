"""GET /nodes: the nodes that a filter finds.

The filter is in the URL, so a view can be shared as a link.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from control.api import node_views, request_input
from control.api.node_views import NodeFilter
from control.api.operations import Reply
from control.console import fleet_grid, rendering
from control.console.hub import Make, Parts
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError
from control.telemetry.fleet_summary import FleetSummary

LIMIT = 50
"""Nodes per page."""
MOST_GONE = 100
"""Maximum nodes that have left a live list and are still updated."""
SHOWN = (
    "find",
    "group",
    "standing",
    "error",
    "label",
    "release",
    "overdue",
    "unseen",
    "state",
    "backup",
    "block",
    "sort",
)
"""The filters of a URL, in the order in which they are shown, and the sort order of the list."""
_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(NodeFilter))


@dataclass(frozen=True)
class NodeList:
    """What the page shows."""

    nodes: list[node_views.Node]
    next: str | None
    """The address of the next page."""
    filters: dict[str, str]
    """The filters in use, by `SHOWN`."""
    count: int | None
    """How many nodes the filter finds; None if they aren't counted."""
    whole: int
    """How many nodes exist in all."""
    url: str
    """The address of the list's first page."""
    command: str
    """The command that lists the same nodes."""

    @property
    def digest(self) -> str:
        """The digest of the nodes listed; if it differs, the list has changed."""
        return sha256(" ".join(node.name for node in self.nodes).encode()).hexdigest()[:12]

    def but(self, name: str) -> str:
        """Return the address of the list without one of the filters."""
        return _url({key: value for key, value in self.filters.items() if key != name})


async def show(visit: Visit) -> Reply:
    """GET /nodes"""
    return await visit.html("node_list.html", list=await _list(visit))


async def live(visit: Visit) -> Make:
    """Return the cells of the nodes that are shown, and whether the list has changed since."""
    seen: dict[str, None] = {}

    async def make() -> Parts:
        found = await _list(visit)
        shown = {node.name for node in found.nodes}
        gone = [name for name in seen if name not in shown][:MOST_GONE]
        seen.update(dict.fromkeys(shown))
        nodes = found.nodes
        if gone:
            nodes = nodes + (await visit.items(node_views.list_nodes, node_views.Node, _named(gone)))[0]
        made = rendering.parts("node_list_parts.html", visit.now, visit=visit, fleet=await visit.fleet())
        parts = {"counted": made("counted", list=found), "news": made("news", list=found, changed=True)}
        for node in nodes:
            for cell in ("standing", "release", "schema", "attempts", "seen"):
                parts[f"{cell}-{node.name}"] = made(cell, node=node)
        return parts

    return make


def filter_of(visit: Visit, given: Mapping[str, str], limit: int) -> tuple[NodeFilter, dict[str, str]]:
    """Return the filter of a URL or a form, and its fields as they are shown. Fields that aren't filters are left out.

    Raises: ProblemError invalid_parameter, with the field that is wrong.
    """
    shown = {name: given[name].strip() for name in SHOWN if given.get(name, "").strip()}
    asked: dict[str, Any] = {name: value for name, value in shown.items() if name in _FIELDS}
    if "=" in asked.get("find", ""):
        asked["label"] = asked.pop("find")
    if given.get("cursor"):
        asked["cursor"] = given["cursor"]
    return request_input.convert({**asked, "limit": str(limit)}, NodeFilter, "invalid_parameter", strict=False), shown


async def with_block(visit: Visit, query: NodeFilter, shown: Mapping[str, str]) -> NodeFilter:
    """Return the filter; if it names a block of the fleet's grid, it selects the nodes that are in the block now.

    Raises: ProblemError invalid_parameter, when there is no such block.
    """
    if "block" not in shown:
        return query
    group, _, number = shown["block"].rpartition("-")
    grid = (await visit.services.standings.grid()).of(visit.rights.groups("read")).groups.get(group)
    names = fleet_grid.names_in(grid, int(number)) if grid and re.fullmatch("[0-9]{1,6}", number) else []
    if not names:
        raise ProblemError("invalid_parameter", f"the fleet has no block {shown['block'][:80]}", field="block")
    return msgspec.structs.replace(query, names=",".join(names), limit=fleet_grid.BLOCK)


async def _list(visit: Visit) -> NodeList:
    query, shown = filter_of(visit, visit.query, LIMIT)
    nodes, cursor = await visit.items(node_views.list_nodes, node_views.Node, await with_block(visit, query, shown))
    fleet = await visit.fleet()
    count = _count(fleet, shown) if fleet else None
    if count is not None:
        # Count what the page has: the summary is from another moment.
        count = max(count, len(nodes)) if cursor or query.cursor else len(nodes)
    return NodeList(
        nodes,
        _url({**shown, "cursor": cursor}) if cursor else None,
        shown,
        count,
        max(fleet.nodes if fleet else 0, count or 0),
        _url(shown),
        _command(query),
    )


def _count(fleet: FleetSummary, shown: Mapping[str, str]) -> int | None:
    """Return how many nodes a filter finds, if the summary says so."""
    if not shown.keys() <= {"group", "standing", "error", "sort"}:
        return None
    groups = [group for group in fleet.groups if shown.get("group") in (None, group.name)]
    if "error" in shown:
        if shown.get("standing", "failing") != "failing":
            return 0
        return sum(cause.nodes for group in groups for cause in group.causes if cause.code == shown["error"])
    if "standing" in shown:
        return sum(n for group in groups for standing, n in group.standings.items() if standing == shown["standing"])
    return sum(group.nodes for group in groups)


def _named(names: list[str]) -> NodeFilter:
    return NodeFilter(names=",".join(names), limit=len(names))


def _url(fields: Mapping[str, str]) -> str:
    return f"/nodes?{urlencode(fields, quote_via=quote)}" if fields else "/nodes"


def _command(query: NodeFilter) -> str:
    options = {
        name: getattr(query, name)
        for name in ("group", "standing", "error", "label", "find", "release", "state", "backup")
    }
    words = [f"--{name} {value}" for name, value in options.items() if value is not None]
    words += [f"--sort {query.sort}"] if query.sort != "name" else []
    words += ["--overdue"] if query.overdue else []
    words += [f"--unseen {query.unseen}s"] if query.unseen else []
    return " ".join(["skerry node list", *words])


PAGES = (ConsolePage("GET", "/nodes", show, live=live, live_by=(*SHOWN, "cursor")),)
