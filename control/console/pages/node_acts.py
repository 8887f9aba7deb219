"""GET and POST /acts/{act}: actions on one or many nodes: first the plan, then the action.

The plan only reads. The form carries its digest: if the plan has changed meanwhile, nothing is done and the new one is
shown. An action on many nodes calls the API as the operator once for each node; a refusal doesn't stop the others.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import msgspec

from control.access.rights import Role
from control.api import node_views, nodes
from control.api.node_views import NodeFilter
from control.api.operations import Handler, Reply
from control.api.request_input import convert
from control.console import rendering
from control.console.pages import node_list
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

MOST = 500
"""Maximum nodes of one action."""
MOST_MOVED = 30
"""Maximum nodes of one move, which is planned for each node."""
HEAVY_FROM = 100
"""Number of nodes from which an action asks for their number to be typed."""


@dataclass(frozen=True)
class NodeAct:
    """An action on nodes."""

    name: Literal["retry", "move", "revoke", "remove"]
    verb: str
    """The verb on the button, before the number of nodes."""
    role: Role
    effect: str
    """What the action does to a node, in a sentence."""
    heavy: bool
    """Whether it can't be undone, so that its target has to be typed."""


ACTS: dict[str, NodeAct] = {
    act.name: act
    for act in (
        NodeAct(
            "retry", "Retry", "deploy", "tries its target again with its next poll, without waiting longer.", False
        ),
        NodeAct("move", "Move", "deploy", "gets the release of the other group as its target.", False),
        NodeAct(
            "revoke",
            "Revoke",
            "admin",
            "loses its credential and its join tokens. It serves on, and gets no release until it has joined again.",
            True,
        ),
        NodeAct(
            "remove",
            "Delete",
            "admin",
            "is out of all lists, its credential ends, and its name is free. Its logs stay; its disk isn't touched.",
            True,
        ),
    )
}


@dataclass(frozen=True)
class ChangedAlike:
    """Nodes that a move changes in the same way."""

    names: list[str]
    plan: nodes.MovePlan


@dataclass(frozen=True)
class ActPlan:
    """What an action would do."""

    act: NodeAct
    nodes: list[node_views.Node]
    """The nodes it applies to; for the others the operator lacks the role, or they no longer exist."""
    refused: list[str]
    """The names of the other nodes."""
    to: str
    """The group to move to, or ''."""
    moves: list[ChangedAlike]
    """The changes of the move; those that remove something come first."""
    more: bool
    """Whether the filter finds more nodes than the action takes at once."""

    @property
    def digest(self) -> str:
        """The digest of the plan; if it differs, the plan has changed."""
        what = [[self.act.name, self.to], [[n.id, n.group, n.target_generation] for n in self.nodes]]
        moves = [[moved.names, moved.plan] for moved in self.moves]
        return sha256(msgspec.json.encode([what, moves])).hexdigest()[:32]

    @property
    def typed(self) -> str:
        """What has to be typed: the node's name, or the number of nodes; '' if nothing."""
        if not self.act.heavy and len(self.nodes) < HEAVY_FROM:
            return ""
        return self.nodes[0].name if len(self.nodes) == 1 else str(len(self.nodes))

    @property
    def allowances(self) -> list[str]:
        """What has to be allowed for a move."""
        plans = [moved.plan for moved in self.moves]
        found = {
            "allow_unfit": any(plan.unfit.count for plan in plans),
            "allow_loss": any(plan.losses for plan in plans),
            "allow_stall": any(plan.stalls for plan in plans),
        }
        return [name for name, needed in found.items() if needed]


@dataclass
class ActResult:
    """The result of an action."""

    done: list[str] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, code and text of each node whose action was refused or failed."""


async def show(visit: Visit) -> Reply:
    """GET /acts/{act}?node=…: its plan. `all`: for all nodes that the URL's filter finds."""
    act = _act(visit)
    return await _ask(visit, await _plan(visit, act, visit.query.getlist("node"), dict(visit.query)))


async def do(visit: Visit) -> Reply:
    """POST /acts/{act}: `node` for each node, the plan's `digest` unless the act is `light`, and the typed text."""
    act, names = _act(visit), visit.form.getlist("node")
    plan = await _plan(visit, act, names, {"to": visit.form.get("to", "")})
    light = not plan.typed and act.name == "retry" and visit.form.get("light") == "1"
    if not light and plan.digest != visit.form.get("digest"):
        return await _ask(
            visit, plan, 409, "The plan has changed since it was shown: nothing was done. This is the new one."
        )
    if not plan.nodes:
        return await _ask(visit, plan, 409, "There is nothing to do.")
    if plan.typed and visit.form.get("typed", "").strip() != plan.typed:
        return await _ask(
            visit, plan, 422, f"Type {plan.typed}, so that it is this and nothing else. Nothing was done."
        )
    result = await _do(visit, plan)
    if len(plan.nodes) == 1 and result.done and act.name != "remove":
        return rendering.redirect(f"/nodes/{result.done[0]}?done={act.name}")
    status = 200 if result.done else 409
    return await visit.html("node_acts_done.html", status, plan=plan, result=result)


async def _do(visit: Visit, plan: ActPlan) -> ActResult:
    result, key = ActResult(), visit.form.get("key", "")[:100]
    body = None
    if plan.act.name == "move":
        allowed = {name: visit.form.get(name) == "1" for name in ("allow_unfit", "allow_loss", "allow_stall")}
        body = nodes.MoveNode(group=plan.to, **allowed)
    by_name: dict[str, Handler] = {
        "retry": nodes.retry,
        "move": nodes.move,
        "revoke": nodes.revoke,
        "remove": nodes.remove,
    }
    operation = by_name[plan.act.name]
    for node in plan.nodes:
        try:
            await visit.ask(operation, {"node": node.id}, body=body, key=f"{key}.{node.id}" if key else "")
            result.done.append(node.name)
        except ProblemError as error:
            result.failed.append((node.name, error.code, error.detail))
    return result


def _act(visit: Visit) -> NodeAct:
    act = ACTS.get(visit.path["act"])
    if act is None:
        raise ProblemError("no_such_path", f"nothing is called {visit.path['act'][:40]}: there are {', '.join(ACTS)}")
    visit.operator.need_somewhere(act.role)
    return act


async def _plan(visit: Visit, act: NodeAct, names: list[str], given: Mapping[str, str]) -> ActPlan:
    """Return the plan of an action. Raises: ProblemError, when no node is named, or the target group doesn't exist."""
    if given.get("all") == "1":
        query, shown = node_list.filter_of(visit, {**given, "cursor": ""}, MOST)
        query = await node_list.with_block(visit, query, shown)
    else:
        names = list(dict.fromkeys(names))
        if not names:
            raise ProblemError("invalid_parameter", "no node is selected: go back, and select some", field="node")
        query = convert({"names": ",".join(names[:MOST]), "limit": MOST}, NodeFilter, "invalid_parameter")
    found, more = await visit.items(node_views.list_nodes, node_views.Node, query)
    mine = [node for node in found if visit.rights.allows(act.role, node.group)]
    there = {node.name for node in mine}
    refused = [name for name in (*names, *(node.name for node in found)) if name not in there]
    to, moves, others = "", list[ChangedAlike](), more is not None or len(names) > MOST
    if act.name == "move":
        to = given.get("to", "")
        mine = [node for node in mine if node.group != to]
        others = others or len(mine) > MOST_MOVED
        mine = mine[:MOST_MOVED]
        if to:
            moves = await _moves(visit, mine, to)
    return ActPlan(act, mine, list(dict.fromkeys(refused)), to, moves, others)


async def _moves(visit: Visit, moved: list[node_views.Node], to: str) -> list[ChangedAlike]:
    """Return what a move to a group changes, with nodes that change in the same way together."""
    visit.operator.need("deploy", to)
    query = convert({"group": to}, nodes.MoveQuery, "invalid_parameter")
    by_change: dict[bytes, ChangedAlike] = {}
    for node in moved:
        plan: nodes.MovePlan = await visit.ask(nodes.plan_move, {"node": node.id}, query)
        alike: Any = (plan.changes, plan.losses, plan.stalls, bool(plan.unfit.count))
        by_change.setdefault(msgspec.json.encode(alike), ChangedAlike([], plan)).names.append(node.name)
        await asyncio.sleep(0)
    return sorted(by_change.values(), key=lambda found: (not found.plan.changes.remove, -len(found.names)))


async def _ask(visit: Visit, plan: ActPlan, status: int = 200, note: str = "") -> Reply:
    fleet = await visit.fleet()
    groups = [group.name for group in fleet.groups if visit.rights.allows("deploy", group.name)] if fleet else []
    return await visit.html("node_acts.html", status, plan=plan, note=note, groups=groups)


PAGES = (ConsolePage("GET", "/acts/{act}", show), ConsolePage("POST", "/acts/{act}", do))
