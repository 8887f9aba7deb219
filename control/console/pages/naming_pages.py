"""Names and labels of nodes, and the deletion of a group."""

from typing import Any

from control.api import groups, node_views, nodes, request_input
from control.api.operations import Reply
from control.console import rendering
from control.console.pages import page_input
from control.console.pages.page_input import path_of
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

NAMING, DELETE = "/nodes/{node}/naming", "/groups/{group}/delete"


async def show_node(visit: Visit) -> Reply:
    """GET /nodes/{node}/naming"""
    return await _show_node(visit)


async def change_node(visit: Visit) -> Reply:
    """POST /nodes/{node}/naming: its `name`, or with `do=label` its `labels`, one per line, which replace all labels
    that it had."""
    key, path = page_input.form_key(visit), path_of(visit)
    try:
        if visit.form.get("do") == "label":
            node: node_views.DetailedNode = await visit.ask(node_views.get_node, path)
            given = _labels(visit.form.get("labels", ""))
            wanted: Any = {"set": given, "remove": sorted(node.labels.keys() - given.keys())}
            body: Any = request_input.convert(wanted, nodes.LabelNode, "invalid_body")
            await visit.ask(nodes.label, path, body=body, key=key)
            return rendering.redirect(f"/nodes/{node.name}?done=label")
        wanted = {"name": visit.form.get("name", "").strip()}
        body = request_input.convert(wanted, nodes.RenameNode, "invalid_body")
        await visit.ask(nodes.rename, path, body=body, key=key)
    except ProblemError as error:
        if error.status not in (409, 422):
            raise
        return await _show_node(visit, error)
    return rendering.redirect(f"/nodes/{body.name}?done=rename")


async def show_group(visit: Visit) -> Reply:
    """GET /groups/{group}/delete"""
    return await visit.html("group_delete.html", group=path_of(visit)["group"], error=None)


async def delete_group(visit: Visit) -> Reply:
    """POST /groups/{group}/delete"""
    key, path = page_input.form_key(visit), path_of(visit)
    name = str(path["group"])
    try:
        page_input.refuse_untyped(visit, name)
        await visit.ask(groups.delete_group, path, key=key)
    except ProblemError as error:
        if error.status not in (409, 422):
            raise
        return await visit.html("group_delete.html", error.status, group=name, error=error)
    return rendering.redirect("/releases")


async def _show_node(visit: Visit, error: ProblemError | None = None) -> Reply:
    node: node_views.DetailedNode = await visit.ask(node_views.get_node, path_of(visit))
    may = {role: visit.rights.allows(role, node.group) for role in ("deploy", "admin")}
    labels = "\n".join(f"{key}={value}" for key, value in sorted(node.labels.items()))
    given = {"name": visit.form.get("name", node.name), "labels": visit.form.get("labels", labels)}
    return await visit.html(
        "node_naming.html", error.status if error else 200, node=node, may=may, given=given, error=error
    )


def _labels(text: str) -> dict[str, str]:
    """Parse labels as people write them, one per line. Raises: ProblemError invalid_body."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals:
            raise ProblemError("invalid_body", f"{line[:100]} isn't KEY=VALUE", field="labels")
        found[key.strip()] = value.strip()
    return found


PAGES = (
    ConsolePage("GET", NAMING, show_node),
    ConsolePage("POST", NAMING, change_node),
    ConsolePage("GET", DELETE, show_group, "admin", everywhere=True),
    ConsolePage("POST", DELETE, delete_group, "admin", everywhere=True),
)
