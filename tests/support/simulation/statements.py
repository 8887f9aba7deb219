"""What the program's SQL statements do, said in Python over `Tables`: each by its file and name in sql/queries.

These are of plans and syncs; `fleet_statements` has those of what replicas keep in memory, `monitor_statements` and
`operator_statements` have the others. A statement that is in none of them can't be asked in a run. Rows have the
columns of the statement in its order, and no promise about their own.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson

from control.storage import queries
from tests.support.simulation.tables import Row, Tables

Rows = list[Row]
Handler = Callable[..., Rows | int]

HANDLERS: dict[str, Handler] = {}
"""By the statement's text. One that answers no rows returns how many it has changed."""
NAMES: dict[str, str] = {}
"""What each is called, by its text: ``syncs.nodes``."""

_SYNC_COLUMNS = {"step": "", "error_code": "", "error_message": "", "late_status": None, "late_at": None}


def statement(file: str, *names: str) -> Callable[[Handler], Handler]:
    """Register what follows as the meaning of these statements of a file."""

    def register(handler: Handler) -> Handler:
        for name in names:
            text = queries.load(file)[name]
            HANDLERS[text], NAMES[text] = handler, f"{file}.{name}"
        return handler

    return register


def pick(row: dict[str, Any], *columns: str) -> Row:
    return Row((column, row[column]) for column in columns)


def known(t: Tables, table: str, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Those of a table's rows that have one of these ids."""
    rows = t[table]
    return [rows[id] for id in dict.fromkeys(ids) if id in rows]


def newest_number(t: Tables, group_id: str) -> int:
    """The number of a group's newest release; 0 without one."""
    return max((row["number"] for row in t["releases"].values() if row["group_id"] == group_id), default=0)


def time(text: str) -> datetime | None:
    """A time that is given as text; '' is NULL."""
    return datetime.fromisoformat(text) if text else None


# poll: what plans are made of


@statement("poll", "releases")
def _releases(t: Tables, ids: Sequence[str]) -> Rows:
    return [pick(row, "id", "number", "schema_floor", "traceparent") for row in known(t, "releases", ids)]


@statement("poll", "release_functions")
def _release_functions(t: Tables, ids: Sequence[str]) -> Rows:
    heads, found = {head["id"]: head for head in _releases(t, ids)}, []
    for row in t["release_functions"].values():
        if row["release_id"] in heads:
            version = t["function_versions"][row["name"], row["version"]]
            rest = pick(version, "size", "artifact_id", "manifest", "manifest_digest")
            first = [*heads[row["release_id"]].items(), *pick(row, "name", "version", "sha256").items()]
            found.append(Row(first, **rest))
    return sorted(found, key=lambda row: row["name"])


@statement("poll", "revisions")
def _revisions(t: Tables) -> Rows:
    return [
        Row(pick(row, "number", "revision", "name", "checksum").items(), planned=row["planned_at"] is not None)
        for row in t["schema_changes"].values()
    ]


@statement("poll", "mark_planned")
def _mark_planned(t: Tables, numbers: Sequence[str], revisions: Sequence[str], now: datetime) -> int:
    keys = [(int(number), int(revision)) for number, revision in zip(numbers, revisions, strict=True)]
    keys = [key for key in keys if t["schema_changes"][key]["planned_at"] is None]
    for key in keys:
        t.update("schema_changes", key, planned_at=now)
    return len(keys)


@statement("poll", "texts")
def _texts(t: Tables, first: int, last: int) -> Rows:
    return [
        pick(row, "number", "revision", "sql") for row in t["schema_changes"].values() if first <= row["number"] <= last
    ]


# syncs


@statement("syncs", "nodes")
def _nodes(t: Tables, ids: Sequence[str]) -> Rows:
    found = []
    for n in known(t, "nodes", ids):
        group = t["groups"][n["group_id"]]
        first = pick(n, "state", "state_since", "schema_version")
        changes = orjson.dumps(n["schema_changes"]).decode()
        rest = pick(
            n,
            *("database_id", "digest", "confirmed_generation", "failures", "failed_generation", "retry_at"),
            *("error_code", "error_message", "error_at", "synced_at", "capabilities_digest", "protocol"),
            *("syncs_folded", "ran_generation", "epoch"),
        )
        own = n["release_id"] if n["generation"] > group["generation"] else None
        found.append(
            Row(
                {"id": n["id"], "removed": n["removed_at"] is not None},
                **first,
                schema_changes=changes,
                **rest,
                release_id=own or group["release_id"],
                target_generation=max(n["generation"], group["generation"]),
                held=False,
            )
        )
    return found


@statement("syncs", "lock_free_nodes")
def _lock_free_nodes(t: Tables, ids: Sequence[str]) -> Rows:
    return [pick(row, "id") for row in known(t, "nodes", ids)]


@statement("syncs", "lock_free_syncs")
def _lock_free_syncs(t: Tables, node_ids: Sequence[str]) -> Rows:
    return [Row(id=t.open_syncs[id]) for id in dict.fromkeys(node_ids) if id in t.open_syncs]


@statement("syncs", "node_functions")
def _node_functions(t: Tables, node_ids: Sequence[str]) -> Rows:
    wanted = set(node_ids)
    columns = ("node_id", "name", "version", "sha256", "manifest_digest")
    return [pick(row, *columns) for row in t["node_functions"].values() if row["node_id"] in wanted]


_SAVED: dict[str, Callable[[str], Any]] = {
    "state": str,
    "state_since": time,
    "schema_version": int,
    "schema_changes": lambda text: orjson.loads(text) if text else None,
    "database_id": str,
    "digest": str,
    "confirmed_generation": int,
    "failures": int,
    "failed_generation": int,
    "retry_at": time,
    "error_code": str,
    "error_message": str,
    "error_at": time,
    "synced_at": time,
    "capabilities": lambda text: orjson.loads(text) if text else None,
    "capabilities_digest": str,
    "protocol": int,
    "syncs_folded": int,
    "ran_generation": int,
}


@statement("syncs", "save_nodes")
def _save_nodes(t: Tables, ids: Sequence[str], *columns: Sequence[str]) -> int:
    for id, *texts in zip(ids, *columns, strict=True):
        values = {name: read(text) for (name, read), text in zip(_SAVED.items(), texts, strict=True)}
        for kept in ("schema_changes", "capabilities"):
            if values[kept] is None:
                del values[kept]
        t.update("nodes", id, **values)
    return len(ids)


@statement("syncs", "delete_functions")
def _delete_functions(t: Tables, node_ids: Sequence[str]) -> int:
    wanted = set(node_ids)
    gone = [key for key in t["node_functions"] if key[0] in wanted]
    for key in gone:
        t.delete("node_functions", key)
    return len(gone)


@statement("syncs", "insert_functions")
def _insert_functions(t: Tables, *columns: Sequence[str]) -> int:
    for node_id, name, version, sha256, digest in zip(*columns, strict=True):
        t.insert(
            "node_functions",
            node_id=node_id,
            name=name,
            version=int(version),
            sha256=sha256,
            manifest_digest=digest,
        )
    return len(columns[0])


@statement("syncs", "open_syncs")
def _open_syncs(t: Tables, node_ids: Sequence[str]) -> Rows:
    found = (t["syncs"][t.open_syncs[id]] for id in dict.fromkeys(node_ids) if id in t.open_syncs)
    return [pick(row, "id", "node_id", "generation", "step", "lease_until") for row in found]


@statement("syncs", "syncs")
def _syncs(t: Tables, ids: Sequence[str]) -> Rows:
    columns = ("id", "node_id", "release_id", "generation", "status", "step", "lease_until", "late_status")
    return [pick(row, *columns) for row in known(t, "syncs", ids)]


@statement("syncs", "insert_syncs")
def _insert_syncs(t: Tables, *arguments: Any) -> int:
    *columns, now, lease = arguments
    for id, node_id, release_id, generation in zip(*columns, strict=True):
        row = {"id": id, "node_id": node_id, "release_id": release_id, "generation": int(generation)}
        times = {"started_at": now, "lease_until": lease, "ended_at": None}
        t.insert("syncs", **row, status="running", **times, **_SYNC_COLUMNS, folded=0)
    return len(columns[0])


@statement("syncs", "full")
def _full(t: Tables, node_ids: Sequence[str], generations: Sequence[str], since: datetime, lines: int) -> Rows:
    wanted = {(id, int(generation)) for id, generation in zip(node_ids, generations, strict=True)}
    ended: dict[str, list[tuple[datetime, str]]] = {}
    for s in t["syncs"].values():
        if (s["node_id"], s["generation"]) in wanted and s["started_at"] >= since and s["status"] != "running":
            ended.setdefault(s["node_id"], []).append((s["started_at"], s["id"]))
    return [Row(node_id=id, newest=max(found)[1]) for id, found in ended.items() if len(found) >= lines]


@statement("syncs", "reopen_syncs")
def _reopen_syncs(t: Tables, ids: Sequence[str], now: datetime, lease: datetime) -> int:
    found = known(t, "syncs", ids)
    for s in found:
        times = {"started_at": now, "lease_until": lease, "ended_at": None}
        t.update("syncs", s["id"], status="running", **times, **_SYNC_COLUMNS, folded=s["folded"] + 1)
    return len(found)


@statement("syncs", "fold_failed_syncs")
def _fold_failed_syncs(t: Tables, *arguments: Any) -> int:
    *columns, now = arguments
    for id, code, message in zip(*columns, strict=True):
        changes = {**_SYNC_COLUMNS, "started_at": now, "lease_until": now, "ended_at": now}
        changes |= {"error_code": code, "error_message": message, "folded": t["syncs"][id]["folded"] + 1}
        t.update("syncs", id, status="failed", **changes)
    return len(columns[0])


@statement("syncs", "insert_failed_syncs")
def _insert_failed_syncs(t: Tables, *arguments: Any) -> int:
    *columns, now = arguments
    for id, node_id, release_id, generation, code, message in zip(*columns, strict=True):
        row = {"id": id, "node_id": node_id, "release_id": release_id, "generation": int(generation)}
        row |= {**_SYNC_COLUMNS, "started_at": now, "lease_until": now, "ended_at": now, "folded": 0}
        t.insert("syncs", **row | {"status": "failed", "error_code": code, "error_message": message})
    return len(columns[0])


@statement("syncs", "renew_syncs")
def _renew_syncs(t: Tables, ids: Sequence[str], lease: datetime) -> int:
    return _change_running(t, {id: {"lease_until": lease} for id in ids})


@statement("syncs", "go_on")
def _go_on(t: Tables, ids: Sequence[str], steps: Sequence[str], lease: datetime) -> int:
    pairs = zip(ids, steps, strict=True)
    return _change_running(t, {id: {"lease_until": lease, "step": step} for id, step in pairs})


@statement("syncs", "end_syncs")
def _end_syncs(t: Tables, *arguments: Any) -> int:
    *columns, now = arguments
    return _change_running(
        t,
        {
            id: {"status": status, "ended_at": now, "error_code": code, "error_message": message}
            for id, status, code, message in zip(*columns, strict=True)
        },
    )


@statement("syncs", "mark_reached")
def _mark_reached(t: Tables, ids: Sequence[str], now: datetime) -> int:
    mine = [row["id"] for row in known(t, "releases", ids) if row["reached_at"] is None]
    for id in mine:
        t.update("releases", id, reached_at=now)
    return len(mine)


@statement("syncs", "late")
def _late(t: Tables, ids: Sequence[str], statuses: Sequence[str], now: datetime) -> int:
    count = 0
    for id, status in zip(ids, statuses, strict=True):
        if t["syncs"][id]["late_status"] is None:
            t.update("syncs", id, late_status=status, late_at=now)
            count += 1
    return count


def _change_running(t: Tables, changes: dict[str, dict[str, Any]]) -> int:
    running = [row["id"] for row in known(t, "syncs", changes) if row["status"] == "running"]
    for id in running:
        t.update("syncs", id, **changes[id])
    return len(running)
