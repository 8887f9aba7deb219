"""What the statements of heartbeats and of the monitor do; see `statements`."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from tests.support.simulation.statements import Rows, known, pick, statement, time
from tests.support.simulation.tables import Row, Tables

Condition = Callable[[dict[str, Any]], bool]


# heartbeats


@statement("heartbeats", "lock_free")
def _lock_free_presence(t: Tables, ids: Sequence[str]) -> Rows:
    return [Row(id=id) for id in ids if id in t["node_presence"]]


def _later(stored: datetime | None, heard: datetime, believed: datetime) -> datetime:
    if stored is None or stored > believed:
        return heard
    return max(stored, heard)


def _heard(t: Tables, ids: Sequence[str], texts: Sequence[str], believed: datetime, columns: Sequence[str]) -> int:
    count = 0
    for id, text in zip(ids, texts, strict=True):
        row, at = t["node_presence"].get(id), time(text)
        if row is None or at is None:
            continue
        changes = {}
        for column in ("last_seen_at", "last_sync_at", "confirmed_at"):
            stored = row[column]
            if column in columns or (stored is not None and stored > believed):
                changes[column] = _later(stored, at, believed)
        t.update("node_presence", id, **changes)
        count += 1
    return count


# No node of a run is cloned, so it doesn't matter which process has polled.


@statement("heartbeats", "seen")
def _seen(t: Tables, ids: Sequence[str], times: Sequence[str], boots: Sequence[str], believed: datetime) -> int:
    return _heard(t, ids, times, believed, ("last_seen_at",))


@statement("heartbeats", "confirmed")
def _confirmed(t: Tables, ids: Sequence[str], times: Sequence[str], boots: Sequence[str], believed: datetime) -> int:
    return _heard(t, ids, times, believed, ("last_seen_at", "last_sync_at", "confirmed_at"))


# future_times: stored times that are ahead of the clock. In a run there is one clock, so there are none.


@statement("future_times", "found")
def _found(t: Tables, limit: datetime, lease_limit: datetime) -> Rows:
    times = [row[c] for row in t["node_presence"].values() for c in ("last_seen_at", "confirmed_at")]
    nodes = [row[c] for row in t["nodes"].values() for c in ("joined_at", "synced_at")]
    leases = [t["syncs"][id]["lease_until"] for id in t.open_syncs.values()]
    presence = any(time is not None and time > limit for time in times)
    ahead = any(time is not None and time > limit for time in nodes)
    return [Row(presence=presence, nodes=ahead, syncs=any(time > lease_limit for time in leases), tokens=False)]


# monitor


@statement("monitor", "take_lease")
def _take_lease(t: Tables, name: str, holder: str, until: datetime, now: datetime) -> Rows:
    held = t["leases"].get(name)
    if held is None:
        t.insert("leases", name=name, holder=holder, expires_at=until, version="", own_targets=False)
    elif held["holder"] == holder or held["expires_at"] <= now:
        t.update("leases", name, holder=holder, expires_at=until)
    else:
        return []
    return [Row(name=name)]


@statement("monitor", "lease")
def _lease(t: Tables, name: str) -> Rows:
    return [pick(t["leases"][name], "holder", "expires_at")] if name in t["leases"] else []


@statement("monitor", "drop_leases")
def _drop_leases(t: Tables, holder: str) -> int:
    held = [name for name, row in t["leases"].items() if row["holder"] == holder]
    for name in held:
        t.delete("leases", name)
    return len(held)


def _since(flag: str, value: bool, column: str, *, later: bool) -> Callable[[dict[str, Any], datetime], bool]:
    def holds(row: dict[str, Any], since: datetime) -> bool:
        return row[flag] is value and row[column] is not None and (row[column] >= since) is later

    return holds


_UNSEEN = _since("offline", False, "last_seen_at", later=False)
_SEEN_AGAIN = _since("offline", True, "last_seen_at", later=True)
_OVERDUE = _since("overdue", False, "confirmed_at", later=False)
_OVERDUE_NO_MORE = _since("overdue", True, "confirmed_at", later=True)


def _all(condition: Callable[[dict[str, Any], datetime], bool]) -> Callable[..., Rows]:
    def answer(t: Tables, since: datetime, limit: int) -> Rows:
        found = [row for row in t["node_presence"].values() if condition(row, since)]
        return [Row(id=row["node_id"]) for row in found[:limit]]

    return answer


def _of(condition: Callable[[dict[str, Any], datetime], bool]) -> Callable[..., Rows]:
    def answer(t: Tables, ids: Sequence[str], since: datetime) -> Rows:
        return [Row(id=row["node_id"]) for row in known(t, "node_presence", ids) if condition(row, since)]

    return answer


statement("monitor", "unseen")(_all(_UNSEEN))
statement("monitor", "seen_again")(_all(_SEEN_AGAIN))
statement("monitor", "overdue")(_all(_OVERDUE))
statement("monitor", "overdue_no_more")(_all(_OVERDUE_NO_MORE))
statement("monitor", "crossing")(_all(lambda row, since: False))
statement("monitor", "crossing_no_more")(_all(lambda row, since: False))
statement("monitor", "lock_unseen")(_of(_UNSEEN))
statement("monitor", "lock_seen_again")(_of(_SEEN_AGAIN))
statement("monitor", "lock_overdue_no_more")(_of(_OVERDUE_NO_MORE))


@statement("monitor", "lock_overdue")
def _lock_overdue(t: Tables, ids: Sequence[str], since: datetime) -> Rows:
    return [
        Row(id=p["node_id"], confirmed_at=p["confirmed_at"], gone=t["nodes"][p["node_id"]]["removed_at"] is not None)
        for p in known(t, "node_presence", ids)
        if _OVERDUE(p, since)
    ]


@statement("monitor", "lock_free")
def _lock_free(t: Tables, ids: Sequence[str]) -> Rows:
    nodes = known(t, "nodes", ids)
    return [Row(id=n["id"], state=n["state"], removed=n["removed_at"] is not None) for n in nodes]


@statement("monitor", "change_states")
def _change_states(t: Tables, ids: Sequence[str], state: str, now: datetime) -> int:
    for id in ids:
        t.update("nodes", id, state=state, state_since=now)
    return len(ids)


@statement("monitor", "find_good")
@statement("monitor", "find_revoked")
def _find_revoked(t: Tables, *_: Any) -> Rows:
    """No operator revokes a node in a run."""
    return []


@statement("monitor", "set_offline")
def _set_offline(t: Tables, ids: Sequence[str], offline: bool) -> int:
    for id in ids:
        t.update("node_presence", id, offline=offline)
    return len(ids)


@statement("monitor", "set_overdue")
def _set_overdue(t: Tables, ids: Sequence[str], overdue: bool) -> int:
    for id in ids:
        t.update("node_presence", id, overdue=overdue)
    return len(ids)


@statement("monitor", "warn")
def _warn(
    t: Tables, ids: Sequence[str], node_ids: Sequence[str], messages: Sequence[str], now: datetime, kind: str
) -> int:
    warned = {(w["node_id"], w["kind"]) for w in t["warnings"].values() if w["cleared_at"] is None}
    count = 0
    for id, node_id, message in zip(ids, node_ids, messages, strict=True):
        if (node_id, kind) not in warned:
            t.insert("warnings", id=id, node_id=node_id, kind=kind, message=message, since=now, cleared_at=None)
            count += 1
    return count


@statement("monitor", "clear_warnings")
def _clear_warnings(t: Tables, node_ids: Sequence[str], now: datetime, kind: str) -> int:
    wanted = set(node_ids)
    found = [
        w["id"]
        for w in t["warnings"].values()
        if w["node_id"] in wanted and w["kind"] == kind and w["cleared_at"] is None
    ]
    for id in found:
        t.update("warnings", id, cleared_at=now)
    return len(found)


@statement("monitor", "expired")
def _expired(t: Tables, now: datetime, limit: int) -> Rows:
    found = [s for id in t.open_syncs.values() if (s := t["syncs"][id])["lease_until"] <= now]
    found.sort(key=lambda s: (s["lease_until"], s["id"]))
    return [pick(s, "id", "node_id", "generation", "step", "lease_until") for s in found[:limit]]


_OLD = (
    *("syncs", "auth_failures", "warnings", "join_tokens", "idempotency", "leases", "batches", "sessions"),
    *("codes", "logins", "credentials"),
)


@statement("audit", "oldest_seal")
def _seals(t: Tables, *_given: object) -> Rows:
    """No row is sealed in a run."""
    return []


@statement("monitor", *(f"old_{kind}" for kind in _OLD))
def _old(t: Tables, before: datetime, limit: int) -> int:
    """A run lasts minutes, and what goes is a day old at least."""
    return 0


# events and arrivals


@statement("events", "record")
def _record_event(t: Tables, *_: Any) -> int:
    """There is no webhook in a run."""
    return 0


@statement("arrivals", "under_way")
def _under_way(t: Tables) -> Rows:
    found = []
    for group in t["groups"].values():
        release = t["releases"].get(group["release_id"])
        if release is not None and release["arrived_at"] is None:
            ids = Row(id=release["id"], group_id=group["id"], group_name=group["name"])
            failed = release["failed_at"] is not None
            found.append(Row(ids.items(), **pick(release, "number", "created_at"), failed=failed))
    return found


def _standing_of(t: Tables, group_id: str, made: datetime) -> list[tuple[dict[str, Any], str]]:
    """The nodes of a group whose target is the group's release, each with what it counts as."""
    generation = t["groups"][group_id]["generation"]

    def counts_as(n: dict[str, Any]) -> str:
        if n["confirmed_generation"] >= max(n["generation"], generation):
            return "arrived"
        if n["error_code"] and n["error_at"] >= made:
            return "failed"
        return "away" if n["state"] == "offline" else "under way"

    members = (n for n in t["nodes"].values() if n["group_id"] == group_id and n["removed_at"] is None)
    shared = (n for n in members if n["release_id"] is None or n["generation"] <= generation)
    return [(n, counts_as(n)) for n in shared]


@statement("arrivals", "standing")
def _standing(t: Tables, group_id: str, made: datetime) -> Rows:
    found = [as_what for _, as_what in _standing_of(t, group_id, made)]
    return [Row(nodes=len(found), **{name: found.count(name) for name in ("arrived", "failed", "away")})]


@statement("arrivals", "codes")
def _codes(t: Tables, group_id: str, made: datetime) -> Rows:
    codes = [n["error_code"] for n, as_what in _standing_of(t, group_id, made) if as_what == "failed"]
    return [
        Row(code=code, nodes=codes.count(code)) for code in sorted(set(codes), key=lambda c: (-codes.count(c), c))[:5]
    ]


def _mark(column: str) -> Callable[[Tables, str, datetime], Rows]:
    def answer(t: Tables, id: str, now: datetime) -> Rows:
        if id not in t["releases"] or t["releases"][id][column] is not None:
            return []
        t.update("releases", id, **{column: now})
        return [pick(t["releases"][id], "number")]

    return answer


statement("arrivals", "mark_arrived")(_mark("arrived_at"))
statement("arrivals", "mark_failed")(_mark("failed_at"))


@statement("monitor", "names")
def _names(t: Tables, ids: Sequence[str]) -> Rows:
    return [Row(name=name) for name in sorted(row["name"] for row in known(t, "nodes", ids))]
