"""What the metadata database holds when a run begins: groups, functions, schema changes, an operator, joined nodes."""

from random import Random
from typing import Any
from uuid import uuid4

import msgspec

from control import tokens
from control.protocol import wire
from control.protocol.manifest import Manifest, manifest_digest
from tests.support.simulation.loop import START
from tests.support.simulation.tables import Tables

GROUPS, FUNCTIONS, VERSIONS, CHANGES = ("default", "canary"), 3, 4, 4


def fill(t: Tables) -> str:
    """Everything but the nodes; returns the token of an operator."""
    t.insert("epochs", id=1, epoch=0)
    t.insert("generations", id=1, generation=0)
    for name in GROUPS:
        t.insert("groups", id=str(uuid4()), name=name, release_id=None, generation=0, epoch=0, created_at=START)
    token = tokens.new_token("operator")
    operator = {"id": str(token.id), "name": "admin", "role": "admin", "secret_hash": token.secret_hash}
    person = {"issuer": None, "subject": None, "shown_name": ""}
    token_before = {"old_secret_hash": "", "rotated_at": None, "old_ends_at": None}
    t.insert(
        "operators",
        **operator,
        **person,
        **token_before,
        created_at=START,
        revoked_at=None,
        epoch=0,
        grants=None,
        expires_at=None,
    )
    made = {"created_by": "admin", "created_at": START}
    for number in range(1, FUNCTIONS + 1):
        name = f"f{number}"
        t.insert("functions", name=name, last_version=VERSIONS, created_at=START)
        for version in range(1, VERSIONS + 1):
            artifact, sha256 = str(uuid4()), wire.schema_checksum(f"{name} {version}")
            kind = {"state": "ready", "abi": "wagi", "memory_pages": 1, "created_at": START, "state_since": START}
            t.insert("artifacts", id=artifact, sha256=sha256, size=100, **kind)
            manifest = Manifest(abi="wagi")
            found = {"artifact_id": artifact, "sha256": sha256, "size": 100, **made}
            found |= {"manifest": msgspec.to_builtins(manifest), "manifest_digest": manifest_digest(manifest)}
            t.insert("function_versions", name=name, version=version, **found)
    for number in range(1, CHANGES + 1):
        sql = f"CREATE TABLE t{number} (id INTEGER PRIMARY KEY)"
        change = {"number": number, "revision": 1, "name": f"change {number}", "sql": sql}
        change |= {"losses": [], "stalls": []}
        t.insert("schema_changes", **change, checksum=wire.schema_checksum(sql), **made, planned_at=None)
    return token.text


def join(t: Tables, name: str, group: str) -> tuple[str, str]:
    """A node that has joined a group and never asked anything; returns its id and its credential."""
    id, token = str(uuid4()), tokens.new_token("node")
    group_id = next(row["id"] for row in t["groups"].values() if row["name"] == group)
    row: dict[str, Any] = {"id": id, "name": name, "labels": {}, "capabilities": {}, "protocol": 1}
    row |= {"group_id": group_id, "generation": 0, "epoch": 0, "state": "online", "state_since": START}
    row |= {"joined_at": START, "removed_at": None, "schema_version": 0, "schema_changes": [], "database_id": ""}
    row |= {"digest": "", "synced_at": None, "confirmed_generation": 0, "failures": 0, "failed_generation": 0}
    row |= {"retry_at": None, "error_code": "", "error_message": "", "error_at": None}
    row |= {"release_id": None, "moved_generation": None}
    t.insert("nodes", **row, capabilities_digest="", syncs_folded=0, ran_generation=0)
    seen = {"last_seen_at": START, "last_sync_at": None, "confirmed_at": START}
    t.insert("node_presence", node_id=id, **seen, offline=False, overdue=False)
    credential = {"id": str(token.id), "node_id": id, "secret_hash": token.secret_hash, "created_at": START}
    unset = dict.fromkeys(("first_used_at", "expires_at", "revoked_at", "replaces"))
    t.insert("credentials", **credential, **unset, epoch=0)
    return id, token.text


def contents(random: Random) -> dict[str, int]:
    """Versions of functions, as a release may set them."""
    some = {f"f{n}": random.randint(1, VERSIONS) for n in range(1, FUNCTIONS + 1) if random.random() < 0.7}
    return some or {"f1": 1}
