"""What a node is called: its name and its labels; and the end of a group."""

from typing import Any

from control.api import node_views
from control.api.bodies import node_responses, requests
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.storage import queries
from control.storage.announcements import Changed
from control.storage.connection import Connection
from control.storage.recovery import access_changes
from control.sync import requirements

DEFAULT_GROUP = "default"
"""The group of nodes and releases for which no other one is named: it can't be deleted."""
SHOWN = 5
"""Names that a refusal has of each kind."""

SQL = queries.load("naming")
LABELS = SQL.value("labels", dict[str, str])
NODES_OF_GROUP = SQL.value("nodes_of_group", str)
TOKENS_OF_GROUP = SQL.value("tokens_of_group", str)
OPERATORS_OF_GROUP = SQL.value("operators_of_group", str)


@operation(
    "POST",
    "/v1/nodes/{node}/rename",
    "Give a node another name",
    role="admin",
    everywhere=False,
    answers={200: node_responses.DetailedNode},
    errors=("unknown_node", "name_taken"),
)
async def rename(call: ApiCall, body: requests.RenameNode) -> Reply:
    """Another name; the node learns it by its next poll."""
    name: str = body.name

    async def work(conn: Connection, changed: Changed) -> node_responses.DetailedNode:
        node = await node_views.find(conn, call.operator, "admin", call.path["node"])
        if node.name != name:
            if await conn.fetchrow(node_views.BY_NAME, name) is not None:
                raise ProblemError("name_taken", f"there is a node {name}: choose another name", field="name")
            await conn.execute(SQL["rename"], node.id, name)
            await conn.execute(SQL["rename_in_tokens"], node.id, name)
            now = call.services.clock.now()
            await access_changes.record(conn, now, "node-renamed", node.id, {"name": name})
            changed.nodes.add(str(node.id))
            before, after = {"name": node.name}, {"name": name, "id": str(node.id)}
            await call.audit(conn, "node.rename", node.name, before=before, after=after)
        return await node_views.describe(conn, node.id, call.services.settings)

    return await call.write(work, status=200)


@operation(
    "POST",
    "/v1/nodes/{node}/labels",
    "Set labels of a node, and take others away",
    role="deploy",
    everywhere=False,
    answers={200: node_responses.DetailedNode},
    errors=("unknown_node",),
)
async def label(call: ApiCall, body: requests.LabelNode) -> Reply:
    """Set some of its labels, and take others away."""
    given: dict[str, str] = body.set
    gone: list[str] = body.remove
    both = sorted(given.keys() & set(gone))
    if both:
        raise ProblemError("invalid_body", f"it is to be set and to be removed: {both[0]}", field="remove")

    async def work(conn: Connection, _changed: Changed) -> node_responses.DetailedNode:
        node = await node_views.find(conn, call.operator, "deploy", call.path["node"])
        old = await conn.fetchval(LABELS, node.id)
        new = {key: value for key, value in {**old, **given}.items() if key not in gone}
        if new != old:
            requirements.check("labels", new)
            await conn.execute(SQL["label"], node.id, new)
            touched = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            before = {"labels": {key: old[key] for key in touched if key in old}}
            after = {"labels": {key: new[key] for key in touched if key in new}}
            await call.audit(conn, "node.label", node.name, before=before, after=after)
        return await node_views.describe(conn, node.id, call.services.settings)

    return await call.write(work, status=200)


@operation(
    "DELETE",
    "/v1/groups/{group}",
    "Delete a group that nothing needs",
    role="admin",
    answers={204: None},
    errors=("unknown_group", "group_in_use"),
)
async def delete_group(call: ApiCall) -> Reply:
    """Refused while anything needs it. Its releases leave the lists; the audit log has
    them."""
    name: str = call.path["group"]

    async def work(conn: Connection, changed: Changed) -> None:
        id = await node_views.group(conn, name)
        if name == DEFAULT_GROUP:
            raise ProblemError("group_in_use", f"the group {name} is that of nodes for which no other one is named")
        now = call.services.clock.now()
        uses: list[tuple[str, list[Any]]] = [
            ("nodes", await conn.column(NODES_OF_GROUP, id, SHOWN + 1)),
            ("join tokens that are open", await conn.column(TOKENS_OF_GROUP, id, now, SHOWN + 1)),
            ("grants of operators", await conn.column(OPERATORS_OF_GROUP, name, now, SHOWN + 1)),
        ]
        found = [f"{what} ({_some(names)})" for what, names in uses if names]
        if found:
            raise ProblemError("group_in_use", f"the group {name} still has {', '.join(found)}", field="group")
        await conn.execute(SQL["delete_group"], id, now)
        changed.groups.add(str(id))
        await call.audit(conn, "group.delete", name, before={"id": str(id)})

    return await call.write(work, status=204)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and others" if len(names) > SHOWN else "")
