"""GET /nodes/{node}: what a node should run and what it runs, how it got there, and what is wrong with it."""

from dataclasses import dataclass, replace
from typing import Literal

from control.api import node_views, release_bodies, releases, syncs
from control.api.operations import Reply
from control.api.request_input import path_value
from control.console import rendering
from control.console.hub import Make, Parts
from control.console.node_functions import ToldFunctions
from control.console.pages import node_data
from control.console.pages.node_data import NodeData
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

SYNCS = 20
"""Syncs that are shown."""
BACK = ("restore", "resume", "cancel")
"""What is done with a node's data."""
RESTORES = 5
"""Restores that are shown."""
PARTS = ("state", "trouble", "facts", "target", "schedules", "syncs", "numbers", "backup", "restores")
"""The parts of the page that change while it is open, besides the calls of its functions."""


@dataclass(frozen=True)
class FunctionLine:
    """A function of a node: the version it runs and the one it should run; None if none."""

    name: str
    runs: release_bodies.ReleaseFunction | None
    target: release_bodies.ReleaseFunction | None

    @property
    def act(self) -> Literal["same", "change", "add", "remove"]:
        """What remains to be done."""
        if self.runs is None:
            return "add"
        if self.target is None:
            return "remove"
        return (
            "same" if (self.runs.version, self.runs.sha256) == (self.target.version, self.target.sha256) else "change"
        )


@dataclass(frozen=True)
class NodePage:
    """What the page shows."""

    node: node_views.DetailedNode
    release: int | None
    """The number of its group's release."""
    functions: list[FunctionLine]
    """The node's functions: those to remove first, then by name."""
    syncs: list[syncs.Sync]
    more_syncs: bool
    told: ToldFunctions
    """What the node reported of its functions' calls."""
    data: NodeData
    """Its backup and its newest restores."""


async def show(visit: Visit) -> Reply:
    """GET /nodes/{node}; with `ask=yes` it includes the calls of functions that the node reports now."""
    shown = await _read(visit)
    if visit.query.get("ask") == "yes":
        told = await visit.node_functions.answer(shown.node, visit.operator.name)
        shown = replace(shown, told=told)
    may = {role: visit.rights.allows(role, shown.node.group) for role in ("deploy", "admin")}
    done = visit.query.get("done", "")
    done = done if done in ("retry", "move", "revoke", "rename", "label", *BACK) else ""
    return await visit.html("node_detail.html", kind="node", shown=shown, may=may, done=done)


async def live(visit: Visit) -> Make:
    """Return the parts of the page that change."""

    async def make() -> Parts:
        try:
            shown = await _read(visit)
        except ProblemError as error:
            if error.code != "unknown_node":
                raise
            return {"kind": "removed"}
        shown = replace(shown, told=visit.node_functions.look(shown.node, visit.operator.name))
        made = rendering.parts("node_detail_parts.html", visit.now, visit=visit, shown=shown)
        counted = rendering.parts("node_functions.html", visit.now, shown=shown)
        title = f"{shown.node.standing.replace('_', ' ')} · {shown.node.name} · Skerry"
        return {
            "kind": "node",
            "title": title,
            **{name: made(name) for name in PARTS},
            "functions": counted("functions"),
        }

    return make


async def _read(visit: Visit) -> NodePage:
    name = path_value("node", visit.path["node"])
    node: node_views.DetailedNode = await visit.ask(node_views.get_node, {"node": name})
    number = node.target_release
    wanted: list[release_bodies.ReleaseFunction] = []
    if number is not None:
        release = await visit.ask(releases.get_release, {"group": node.group, "number": number})
        wanted = release.functions
    query = syncs.SyncFilter(limit=SYNCS, node=node.id)
    logged, more = await visit.items(syncs.list_syncs, syncs.Sync, query)
    return NodePage(
        node,
        number,
        _compared(node.functions, wanted),
        logged,
        more is not None,
        visit.node_functions.known(node),
        await node_data.of_node(visit, node, RESTORES),
    )


def _compared(
    runs: list[release_bodies.ReleaseFunction], wanted: list[release_bodies.ReleaseFunction]
) -> list[FunctionLine]:
    mine, target = {f.name: f for f in runs}, {f.name: f for f in wanted}
    lines = [FunctionLine(name, mine.get(name), target.get(name)) for name in sorted(mine.keys() | target.keys())]
    return sorted(lines, key=lambda line: line.act != "remove")


PAGES = (ConsolePage("GET", "/nodes/{node}", show, live=live),)
