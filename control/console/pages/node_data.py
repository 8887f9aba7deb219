"""The data of a node: its backup's histories and its restores, bringing a state back, and letting it go on.

Ordering a restore first shows what it would bring back and what would be gone; the form carries the digest of that
plan, which the API checks. Letting a node go on shows to which release it goes.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import msgspec
from starlette.datastructures import QueryParams

from control.access.auth import AuthError
from control.api import backups, node_views, request_input
from control.api.backups import DetailedBackup, NodeRestore
from control.api.node_views import DetailedNode
from control.api.operations import Reply
from control.console import rendering
from control.console.pages import page_input
from control.console.shown_backup import ShownBackup
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

ONE = "/nodes/{node}/data"
RESTORE = f"{ONE}/restore"
RESUME = f"{ONE}/resume"
SHOWN = 50
"""Restores per page."""
WAYS = ("latest", "time", "before", "position")
"""How the form says which state."""


@dataclass(frozen=True)
class WantedState:
    """The state that a form asks for."""

    way: str
    """One of `WAYS`."""
    at: str
    release: str
    position: str

    @property
    def to(self) -> str:
        """The state as the API takes it."""
        if self.way == "time":
            return _in_utc(self.at)
        if self.way == "before":
            return f"before:{self.release}"
        return self.position if self.way == "position" else "latest"


@dataclass(frozen=True)
class NodeData:
    """A node's backup and its newest restores."""

    backup: ShownBackup
    restores: list[NodeRestore]
    next: str | None
    """The cursor of the next restores; None if there are no more."""


async def of_node(visit: Visit, node: DetailedNode, restores: int = 1) -> NodeData:
    """Return the backup of a node and its newest restores. Raises: ProblemError, when they can't be read."""
    query = backups.RestoreList(limit=restores)
    found, next = await visit.items(backups.list_restores, NodeRestore, query, {"node": node.id})
    backup: DetailedBackup | None = None
    try:
        backup = await visit.ask(backups.get_backup, {"node": node.id})
    except ProblemError as error:
        if error.code != "unknown_backup":
            raise
    shown = ShownBackup(node.name, node.group, node.protocol, backup, found[0] if found else None, visit.now)
    return NodeData(shown, found, next)


async def show(visit: Visit) -> Reply:
    """GET /nodes/{node}/data"""
    node = await _node(visit)
    data = await of_node(visit, node, SHOWN)
    restores, next = data.restores, data.next
    if visit.query.get("cursor"):
        given = {"limit": SHOWN, "cursor": visit.query["cursor"]}
        query = request_input.convert(given, backups.RestoreList, "invalid_parameter", strict=False)
        restores, next = await visit.items(backups.list_restores, NodeRestore, query, {"node": node.id})
    return await visit.html(
        "node_data.html",
        node=node,
        shown=data.backup,
        restores=restores,
        next=next,
        may=visit.rights.allows("deploy", node.group),
    )


async def show_restore(visit: Visit) -> Reply:
    """GET /nodes/{node}/data/restore: a form, and with `do` or `to` the plan of what it asks for."""
    return await _ask(visit, visit.query, planned="do" in visit.query or "to" in visit.query)


async def do_restore(visit: Visit) -> Reply:
    """POST /nodes/{node}/data/restore: `position` and `plan_digest` as they were shown, the node's name, and why."""
    key, fields = page_input.form_key(visit), visit.form
    name = str(page_input.path_of(visit)["node"])
    given = {field: fields.get(field, "").strip() for field in ("reason", "plan_digest")}
    wanted = {"to": fields.get("position", "").strip(), **given}
    body = request_input.convert(wanted, backups.NewRestore, "invalid_body")
    try:
        if not body.reason:
            raise ProblemError("invalid_body", "say why: the audit log keeps it", field="reason")
        page_input.refuse_untyped(visit, name)
        await visit.ask(backups.restore_node, {"node": name}, backups.RestoreQuery(), body, key=key)
    except AuthError:
        raise
    except ProblemError as error:
        if error.status not in (409, 422):
            raise
        return await _ask(visit, fields, planned=True, error=error)
    return rendering.redirect(f"/nodes/{name}?done=restore")


async def _ask(visit: Visit, fields: QueryParams, *, planned: bool, error: ProblemError | None = None) -> Reply:
    node = await _node(visit)
    visit.operator.need("deploy", node.group)
    wanted, plan = _wanted(fields, node), None
    if planned:
        try:
            body = request_input.convert({"to": wanted.to}, backups.NewRestore, "invalid_parameter")
            plan = await visit.ask(backups.restore_node, {"node": node.id}, backups.RestoreQuery(plan=True), body)
        except AuthError:
            raise
        except ProblemError as problem:
            if problem.status >= 500:
                raise
            error = error or problem
    return await visit.html(
        "node_restore.html",
        error.status if error else 200,
        node=node,
        shown=(await of_node(visit, node)).backup,
        wanted=wanted,
        plan=plan,
        fields=fields,
        error=error,
    )


def _wanted(fields: QueryParams, node: DetailedNode) -> WantedState:
    """Return the state that a form or a link (`to`) asks for, with what the form offers where it says nothing."""
    way, to = fields.get("way", ""), fields.get("to", "").strip()
    at, release, position = (fields.get(name, "").strip() for name in ("at", "release", "position"))
    if to == "latest":
        way = to
    elif to.startswith("before:"):
        way, release = "before", to.removeprefix("before:")
    elif "/" in to:
        way, position = "position", to
    elif to:
        way, at = "time", to
    return WantedState(way if way in WAYS else "latest", at, release or str(node.release or ""), position)


def _in_utc(text: str) -> str:
    """Return a time of a form, which is in UTC if it says no offset, as the API takes it; other text as it is."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if time.tzinfo is not None else time.replace(tzinfo=UTC).isoformat()


async def show_resume(visit: Visit) -> Reply:
    """GET /nodes/{node}/data/resume: what the node would do then."""
    node = await _node(visit)
    visit.operator.need("deploy", node.group)
    shown = (await of_node(visit, node)).backup
    if shown.held is None:
        text = f"node {node.name} isn't held, and no restore of it is ordered: there is nothing to resume"
        raise ProblemError("restore_not_possible", text, field="node")
    return await _ask_resume(visit, node, shown)


async def do_resume(visit: Visit) -> Reply:
    """POST /nodes/{node}/data/resume: `digest` as it was shown."""
    key, node = page_input.form_key(visit), await _node(visit)
    visit.operator.need("deploy", node.group)
    shown = (await of_node(visit, node)).backup
    # A form that is sent twice finds the node going on by itself: the API answers it as before.
    if shown.held is not None and visit.form.get("digest") != digest(node, shown):
        text = "the restore, or the release to which the node would go, is another one by now: this is what is so"
        return await _ask_resume(visit, node, shown, ProblemError("plan_changed", text))
    ended = await visit.ask(backups.resume_node, {"node": node.id}, key=key)
    done = "cancel" if ended["state"] == "cancelled" else "resume"
    return rendering.redirect(f"/nodes/{node.name}?done={done}")


async def _ask_resume(visit: Visit, node: DetailedNode, shown: ShownBackup, error: ProblemError | None = None) -> Reply:
    status = error.status if error else 200
    return await visit.html("node_resume.html", status, node=node, shown=shown, digest=digest(node, shown), error=error)


def digest(node: DetailedNode, shown: ShownBackup) -> str:
    """Return the digest of what resuming a node would do: its restore, that one's state, and the node's target."""
    held = shown.held
    what = [held.id if held else "", held.state if held else "", node.target_generation, node.target_release]
    return sha256(msgspec.json.encode(what)).hexdigest()[:32]


async def _node(visit: Visit) -> DetailedNode:
    found: DetailedNode = await visit.ask(node_views.get_node, page_input.path_of(visit))
    return found


PAGES = (
    ConsolePage("GET", ONE, show),
    ConsolePage("GET", RESTORE, show_restore, "deploy"),
    ConsolePage("POST", RESTORE, do_restore, "deploy"),
    ConsolePage("GET", RESUME, show_resume, "deploy"),
    ConsolePage("POST", RESUME, do_resume, "deploy"),
)
