"""What the statements do that read and announce what replicas keep in memory; see `statements`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tests.support.simulation.statements import Rows, known, newest_number, pick, statement
from tests.support.simulation.tables import Row, Tables

_GROUP = ("id", "name", "release_id", "generation")
_CREDENTIAL = ("id", "node_id", "secret_hash", "created_at", "revoked_at", "first_used_at", "replaces")
_OPERATOR = (
    "id",
    "name",
    "role",
    "secret_hash",
    "revoked_at",
    "grants",
    "expires_at",
    "issuer",
    "subject",
    "shown_name",
    "old_secret_hash",
    "rotated_at",
    "old_ends_at",
)


def _group(t: Tables, row: dict[str, Any]) -> Row:
    release = t["releases"].get(row["release_id"])
    number = None if release is None else release["number"]
    newest = newest_number(t, row["id"])
    return Row(pick(row, *_GROUP).items(), release_number=number, newest_number=newest, rehearsal="", backup=0.0)


def _node(t: Tables, row: dict[str, Any]) -> Row:
    own = t["releases"].get(row["release_id"])
    names = ("id", "name", "group_id", "epoch", "generation", "confirmed_generation", "digest", "capabilities_digest")
    return Row(
        pick(row, *names, "ran_generation").items(),
        removed=row["removed_at"] is not None,
        revoked=row["state"] == "revoked",
        release_id=row["release_id"],
        release_number=None if own is None else own["number"],
        moved_generation=row["generation"] if row["moved_generation"] is None else row["moved_generation"],
        restore_id="",
    )


@statement("fleet", "epoch")
def _epoch(t: Tables, name: str) -> Rows:
    mark = int(t["leases"][name]["holder"]) if name in t["leases"] else 0
    return [Row(epoch=t["epochs"][1]["epoch"], mark=mark, clock_timestamp=t.now())]


@statement("fleet", "write_mark")
def _write_mark(t: Tables, name: str, count: str, until: datetime, least: int, version: str) -> Rows:
    if name in t["leases"]:
        if int(t["leases"][name]["holder"]) < least:
            return []
        t.update("leases", name, holder=count, expires_at=until, version=version, own_targets=True)
    elif least == 0:
        t.insert("leases", name=name, holder=count, expires_at=until, version=version, own_targets=True)
    else:
        return []
    return [Row(name=name)]


@statement("fleet", "announced")
def _announced(t: Tables) -> Rows:
    tables = ("groups", "nodes", "credentials", "operators")
    last = {table: max((row["epoch"] for row in t[table].values()), default=0) for table in tables}
    return [Row(last, watched=bool(t["watches"]))]


@statement("fleet", "groups_since")
def _groups_since(t: Tables, epoch: int) -> Rows:
    return [_group(t, row) for row in t["groups"].values() if row["epoch"] > epoch]


@statement("fleet", "groups_by_id")
def _groups_by_id(t: Tables, ids: Sequence[str]) -> Rows:
    return [_group(t, row) for row in known(t, "groups", ids)]


@statement("fleet", "nodes_since")
def _nodes_since(t: Tables, epoch: int) -> Rows:
    return [_node(t, row) for row in t["nodes"].values() if row["epoch"] > epoch]


@statement("fleet", "nodes_by_id")
def _nodes_by_id(t: Tables, ids: Sequence[str]) -> Rows:
    return [_node(t, row) for row in known(t, "nodes", ids)]


@statement("fleet", "credentials_since")
def _credentials_since(t: Tables, epoch: int) -> Rows:
    return [pick(row, *_CREDENTIAL) for row in t["credentials"].values() if row["epoch"] > epoch]


@statement("fleet", "credentials_by_id")
def _credentials_by_id(t: Tables, ids: Sequence[str]) -> Rows:
    return [pick(row, *_CREDENTIAL) for row in known(t, "credentials", ids)]


@statement("fleet", "operators_since")
def _operators_since(t: Tables, epoch: int) -> Rows:
    return [pick(row, *_OPERATOR) for row in t["operators"].values() if row["epoch"] > epoch]


@statement("fleet", "operators_by_id")
def _operators_by_id(t: Tables, ids: Sequence[str]) -> Rows:
    return [pick(row, *_OPERATOR) for row in known(t, "operators", ids)]


@statement("fleet", "watches")
def _watches(t: Tables, now: datetime) -> Rows:
    names = ("id", "viewer", "operator", "node_id", "group_ids", "question", "rate")
    return [pick(row, *names) for row in t["watches"].values() if row["expires_at"] > now]


@statement("announce", "announce")
def _announce(t: Tables, *ids: Sequence[str]) -> Rows:
    epoch = t["epochs"][1]["epoch"] + 1
    t.update("epochs", 1, epoch=epoch)
    for table, changed in zip(("groups", "nodes", "credentials", "operators"), ids, strict=True):
        for row in known(t, table, changed):
            t.update(table, row["id"], epoch=epoch)
    return [Row(epoch=epoch)]


@statement("auth", "first_use")
def _first_use(t: Tables, id: str, now: datetime) -> Rows:
    good = [row for row in known(t, "credentials", [id]) if row["revoked_at"] is None]
    found = [row for row in good if row["first_used_at"] is None]
    for row in found:
        t.update("credentials", row["id"], first_used_at=now)
    return [pick(row, "id") for row in found]


@statement("auth", "revoke")
def _revoke(t: Tables, id: str, now: datetime) -> Rows:
    found = [row for row in known(t, "credentials", [id]) if row["revoked_at"] is None]
    for row in found:
        t.update("credentials", row["id"], revoked_at=now)
    return [pick(row, "id") for row in found]
