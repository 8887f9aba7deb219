"""What control says of its nodes: state, what each runs and should run, errors and warnings (R 1.4, 4.3, 5.4)."""

from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

import msgspec

from control import wire
from control.api import pagination, records, responses
from control.api.operations import Answer, Call
from control.problems import ProblemError
from control.storage import queries

SQL = queries.load("nodelist")


class NodeFilter(records.Paging, forbid_unknown_fields=True):
    group: wire.Name | None = None
    state: Literal["online", "offline", "syncing"] | None = None


async def list_nodes(call: Call) -> Answer:
    """GET /v1/nodes, by name."""
    query = call.query
    after = pagination.read_cursor(query.cursor, (str,)) or ("",)

    async def work(conn: Any) -> responses.Page[responses.Node]:
        if query.group is not None and await conn.fetchval(SQL["group"], query.group) is None:
            raise ProblemError("unknown_group", f"there is no group {query.group}", field="group")

        def fetch(after: tuple[Any, ...], count: int) -> Any:
            return conn.fetch(SQL["nodes"], *after, query.group, query.state, count)

        return await pagination.fill(fetch, lambda rows: _describe(conn, rows), after, query.limit, ("name",), first=8)

    return await call.read(work)


async def get_node(call: Call) -> Answer:
    """GET /v1/nodes/{node}."""
    node = call.path["node"]

    async def work(conn: Any) -> responses.DetailedNode:
        return await describe(conn, (await find(conn, node))["id"])

    return await call.read(work)


async def find(conn: Any, node: str, field: str = "node") -> Any:
    """The row (id, name, group_id, group_name) of a node by its id or name; raises `ProblemError`."""
    try:
        row = await conn.fetchrow(SQL["by_id"], UUID(node))
    except ValueError:
        row = None
    # A name may look like an id.
    row = row or await conn.fetchrow(SQL["by_name"], node)
    if row is None:
        raise ProblemError("unknown_node", f"there is no node {node}", field=field)
    return row


async def describe(conn: Any, id: UUID) -> responses.DetailedNode:
    """The node of that id, which there is."""
    rows = await conn.fetch(SQL["node"], id)
    node = msgspec.structs.asdict((await _describe(conn, rows))[0])
    return responses.DetailedNode(**node, capabilities=rows[0]["capabilities"], protocol=rows[0]["protocol"])


async def _describe(conn: Any, rows: Sequence[Any]) -> list[responses.Node]:
    ids = [str(row["id"]) for row in rows]
    releases = sorted({str(row["release_id"]) for row in rows if row["release_id"] is not None})
    runs = _by(await conn.fetch(SQL["functions"], ids), "node_id")
    wanted = _by(await conn.fetch(SQL["targets"], releases), "release_id")
    warnings = _by(await conn.fetch(SQL["warnings"], ids), "node_id")
    syncs = _by(await conn.fetch(SQL["open_syncs"], ids), "node_id")
    return [
        _node(row, runs.get(row["id"], []), wanted.get(row["release_id"], []), warnings.get(row["id"], []), syncs)
        for row in rows
    ]


def _node(
    row: Any, runs: list[Any], wanted: list[Any], warnings: list[Any], syncs: dict[Any, list[Any]]
) -> responses.Node:
    functions = [responses.ReleaseFunction(f["name"], f["version"], f["sha256"]) for f in runs]
    target_schema: int = row["schema_floor"] or 0
    same = {(f["name"], f["version"], f["sha256"], f["manifest_digest"]) for f in runs} == {
        (f["name"], f["version"], f["sha256"], f["manifest_digest"]) for f in wanted
    }
    at_target = row["release_id"] is None or (
        same and row["schema_version"] >= target_schema and row["confirmed_generation"] >= row["target_generation"]
    )
    return responses.Node(
        id=str(row["id"]),
        name=row["name"],
        group=row["group_name"],
        labels=row["labels"],
        state=row["state"],
        state_since=row["state_since"],
        joined_at=row["joined_at"],
        last_seen_at=row["last_seen_at"],
        last_sync_at=row["last_sync_at"],
        generation=row["confirmed_generation"],
        target_generation=row["target_generation"],
        at_target=at_target,
        schema_version=row["schema_version"],
        target_schema=target_schema,
        functions=functions,
        failures=row["failures"],
        syncs_folded=row["syncs_folded"],
        error=responses.NodeError(row["error_code"], row["error_message"], row["error_at"])
        if row["error_code"]
        else None,
        retry_at=row["retry_at"],
        warnings=[responses.Warning(w["kind"], w["message"], w["since"]) for w in warnings],
        sync=next(
            (
                responses.OpenSync(str(s["id"]), s["status"], s["step"], s["started_at"])
                for s in syncs.get(row["id"], [])
            ),
            None,
        ),
    )


def _by(rows: list[Any], column: str) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return found
