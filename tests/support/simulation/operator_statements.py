"""What the statements of operators' writes and of credentials do; see `statements`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from tests.support.simulation.statements import Rows, known, newest_number, pick, statement
from tests.support.simulation.tables import Row, Tables


def _group(t: Tables, name: str) -> list[dict[str, Any]]:
    return [row for row in t["groups"].values() if row["name"] == name]


# losses and stalls: no schema change of a run can lose rows, or holds writers up


@statement("registered_changes", "group_floor")
def _group_floor(t: Tables, name: str) -> Rows:
    releases, newest = t["releases"], _newest_change(t)
    return [
        Row(
            id=row["id"],
            schema_floor=releases[row["release_id"]]["schema_floor"] if row["release_id"] else 0,
            newest_change=newest,
            has_nodes=any(n["state"] != "revoked" for n in _of_group(t, row["id"])),
        )
        for row in _group(t, name)
    ]


def _newest_change(t: Tables) -> int:
    return max((number for number, _ in t["schema_changes"]), default=0)


@statement("registered_changes", "moving")
def _moving(t: Tables, id: UUID, group_id: UUID) -> Rows:
    floor = _floor_of_group(t, group_id)[0]["floor"]
    return [Row(**pick(row, "name", "schema_version"), schema_floor=floor) for row in known(t, "nodes", [str(id)])]


@statement("compatibility", "floor")
def _floor_of_group(t: Tables, group_id: UUID) -> Rows:
    release = t["releases"].get(t["groups"][str(group_id)]["release_id"])
    return [Row(floor=0 if release is None else release["schema_floor"])]


# losses and stalls: no schema change of a run can lose rows, or holds writers up, and each has been checked


@statement("registered_changes", "found")
@statement("registered_changes", "unchecked")
def _found(t: Tables, *_between: int) -> Rows:
    return []


@statement("access_lists", "record")
def _record_access(t: Tables, id: UUID, at: datetime, kind: str, subject: Any, details: dict[str, Any]) -> int:
    t.insert("access_changes", id=str(id), at=at, kind=kind, subject=str(subject), details=details)
    return 1


@statement("access_lists", "record_all")
def _record_all_access(t: Tables, ids: Sequence[str], subjects: Sequence[str], at: datetime, kind: str) -> int:
    for id, subject in zip(ids, subjects, strict=True):
        t.insert("access_changes", id=id, at=at, kind=kind, subject=subject, details={})
    return len(ids)


@statement("auth", "operator_rights")
def _operator_rights(t: Tables, id: str) -> Rows:
    return [pick(t["operators"][id], "role", "grants", "expires_at", "rotated_at")]


@statement("auth", "credential_is_valid")
def _credential_is_valid(t: Tables, id: str) -> Rows:
    return [Row(exists=t["credentials"][id]["revoked_at"] is None)]


# releases


@statement("releases", "group")
def _release_group(t: Tables, name: str) -> Rows:
    return [
        Row(
            id=UUID(row["id"]),
            release_id=None if row["release_id"] is None else UUID(row["release_id"]),
            generation=row["generation"],
        )
        for row in _group(t, name)
    ]


@statement("releases", "to_release")
def _to_release(t: Tables, name: str) -> Rows:
    found = []
    for row in _group(t, name):
        release = t["releases"].get(row["release_id"])
        own = [other for other in t["releases"].values() if other["group_id"] == row["id"]]
        found.append(
            Row(
                id=UUID(row["id"]),
                release_id=None if row["release_id"] is None else UUID(row["release_id"]),
                schema_floor=0 if release is None else release["schema_floor"],
                own_id=None if row["release_id"] is None else UUID(row["release_id"]),
                own_number=None if release is None else release["number"],
                own_floor=0 if release is None else release["schema_floor"],
                policy=None,
                open_number=None,
                open_policy=None,
                open_rehearses=False,
                highest_floor=max((other["schema_floor"] for other in own), default=0),
                newest_change=_newest_change(t),
                next_number=newest_number(t, row["id"]) + 1,
            )
        )
    return found


@statement("releases", "lock_group")
def _lock_group(t: Tables, id: UUID) -> int:
    return len(known(t, "groups", [str(id)]))


@statement("releases", "functions")
def _functions(t: Tables, ids: Sequence[str]) -> Rows:
    wanted = set(ids)
    found = [row for row in t["release_functions"].values() if row["release_id"] in wanted]
    found.sort(key=lambda row: (row["release_id"], row["name"]))
    return [
        Row({"release_id": UUID(row["release_id"])} | pick(row, "name", "version", "sha256").copy()) for row in found
    ]


@statement("releases", "versions")
def _versions(t: Tables, names: Sequence[str], versions: Sequence[str], counted: Sequence[str], most: int) -> Rows:
    keys = [(name, int(version)) for name, version in zip(names, versions, strict=True)]
    found = [
        (t["function_versions"][key], of_release == "true")
        for key, of_release in zip(keys, counted, strict=True)
        if key in t["function_versions"]
    ]
    # PostgreSQL writes a space after each colon and comma; in a run's manifests there is one of either at most.
    texts = [orjson.dumps(row["manifest"]) for row, of_release in found if of_release]
    size = sum(len(text) + text.count(b":") + text.count(b",") for text in texts)
    return [
        Row(
            pick(row, "name", "version", "sha256").items(),
            bytes=size,
            manifest=row["manifest"] if size <= most else None,
        )
        for row, _ in found
    ]


@statement("nodes", "take_generation")
def _take_generation(t: Tables) -> Rows:
    generation = t["generations"][1]["generation"] + 1
    t.update("generations", 1, generation=generation)
    return [Row(generation=generation)]


@statement("releases", "make")
def _make(
    t: Tables,
    id: UUID,
    group_id: UUID,
    number: int,
    floor: int,
    rollback_to: int | None,
    reason: str,
    by: str,
    now: datetime,
    traceparent: str,
    *columns: Sequence[str],
) -> Rows:
    [taken] = _take_generation(t)
    generation = taken["generation"]
    row = {"id": str(id), "group_id": str(group_id), "number": number, "generation": generation, "schema_floor": floor}
    more = {"rollback_to": rollback_to, "reason": reason, "created_by": by, "created_at": now, "reached_at": None}
    more |= {"arrived_at": None, "failed_at": None}
    more["traceparent"] = traceparent
    t.insert("releases", **row, **more)
    for name, version, sha256 in zip(*columns, strict=True):
        t.insert("release_functions", release_id=str(id), name=name, version=int(version), sha256=sha256)
    t.update("groups", str(group_id), release_id=str(id), generation=generation)
    return [taken]


@statement("releases", "changes_between")
def _changes_between(t: Tables, above: int, to: int) -> Rows:
    newest: dict[int, dict[str, Any]] = {}
    for row in t["schema_changes"].values():
        if above < row["number"] <= to:
            other = newest.get(row["number"])
            if other is None or other["revision"] < row["revision"]:
                newest[row["number"]] = row
    return [pick(newest[number], "number", "name") for number in sorted(newest)]


@statement("releases", "release")
def _release(t: Tables, group: str, number: int) -> Rows:
    found = [r for r in t["releases"].values() if r["number"] == number and t["groups"][r["group_id"]]["name"] == group]
    columns = ("number", "generation", "schema_floor", "rollback_to", "reason", "created_by", "created_at")
    no_rollout = {"state": None, "policy": None, "rehearsal_only": None}
    return [Row({"id": UUID(r["id"]), "group_name": group}, **pick(r, *columns), **no_rollout) for r in found]


# compatibility: which nodes can run a release


def _of_group(t: Tables, group_id: str, digest: str | None = None) -> list[dict[str, Any]]:
    nodes = [n for n in t["nodes"].values() if n["group_id"] == group_id and n["removed_at"] is None]
    return sorted(
        (n for n in nodes if digest is None or n["capabilities_digest"] == digest), key=lambda n: str(n["name"])
    )


@statement("compatibility", "stepped")
def _in_steps(t: Tables, *_between: int) -> Rows:
    """No schema change of a run goes in steps."""
    return []


@statement("compatibility", "next_capabilities")
def _next_capabilities(t: Tables, group_id: str, after: str) -> Rows:
    later = [n for n in _of_group(t, group_id) if n["capabilities_digest"] > after]
    if not later:
        return []
    first = min(later, key=lambda n: str(n["capabilities_digest"]))
    return [Row(digest=first["capabilities_digest"], capabilities=first["capabilities"])]


@statement("compatibility", "with_digest")
def _with_digest(t: Tables, group_id: str, digest: str, limit: int) -> Rows:
    nodes = _of_group(t, group_id, digest)
    return [Row(name=n["name"], nodes=len(nodes)) for n in nodes[:limit]]


@statement("compatibility", "without_digest")
def _without_digest(t: Tables, group_id: str, limit: int) -> Rows:
    alike: dict[str, list[str]] = {}
    for n in _of_group(t, group_id, ""):
        alike.setdefault(orjson.dumps(n["capabilities"]).decode(), []).append(n["name"])
    return [
        Row(capabilities=text, nodes=len(names), name=name)
        for text, names in sorted(alike.items())
        for name in names[:limit]
    ]


# What operators did, and the answers that they got


@statement("audit", "record")
def _record(t: Tables, id: UUID, at: datetime, *columns: Any) -> int:
    _kind, operator, _address, _call, action, subject, details, _before, _after = columns
    t.insert("audit", id=str(id), at=at, operator=operator, action=action, subject=subject, details=details)
    return 1


@statement("idempotency", "find")
def _find(t: Tables, operator: str, key: str) -> Rows:
    row = t["idempotency"].get((operator, key))
    return [] if row is None else [pick(row, "request_digest", "response")]


@statement("idempotency", "keep")
def _keep(t: Tables, operator: str, key: str, digest: str, status: int, response: Any, now: datetime) -> int:
    row = {"operator": operator, "key": key, "request_digest": digest, "status": status}
    # As it comes back: JSON, in which a time is a text.
    t.insert("idempotency", **row, response=orjson.loads(orjson.dumps(response)), created_at=now)
    return 1


# nodes: moves, another try, rotated credentials


@statement("nodes", "is_cloned")
def _is_cloned(t: Tables, id: str) -> Rows:
    return [Row(cloned=False)]


@statement("nodes", "lock")
def _lock(t: Tables, id: UUID) -> int:
    return len(known(t, "nodes", [str(id)]))


@statement("nodes", "move")
def _move(t: Tables, id: UUID, group_id: UUID, generation: int) -> int:
    t.update("nodes", str(id), group_id=str(group_id), generation=generation, release_id=None, moved_generation=None)
    return 1


@statement("join_tokens", "revoke_for_node")
def _revoke_for_node(_t: Tables, _id: UUID, _now: datetime, _but: UUID | None) -> int:
    return 0  # nodes have joined before a run begins


@statement("nodes", "retry")
def _retry(t: Tables, id: UUID) -> int:
    t.update("nodes", str(id), retry_at=None, failed_generation=0)
    return 1


@statement("nodes", "name_and_group")
def _name_and_group(t: Tables, id: str) -> Rows:
    node = t["nodes"][id]
    return [Row(name=node["name"], group_name=t["groups"][node["group_id"]]["name"], removed_at=node["removed_at"])]


@statement("nodes", "revoke_unused")
def _revoke_unused(t: Tables, node_id: str, but: str, now: datetime) -> Rows:
    found = [
        c
        for c in t["credentials"].values()
        if c["node_id"] == node_id and c["id"] != but and c["revoked_at"] is None and c["first_used_at"] is None
    ]
    for c in found:
        t.update("credentials", c["id"], revoked_at=now)
    return [pick(c, "id") for c in found]


@statement("nodes", "add_credential")
def _add_credential(t: Tables, id: UUID, node_id: str, secret_hash: str, now: datetime, replaces: str | None) -> int:
    row = {"id": str(id), "node_id": node_id, "secret_hash": secret_hash, "created_at": now, "replaces": replaces}
    t.insert("credentials", **row, first_used_at=None, expires_at=None, revoked_at=None, epoch=0)
    return 1
