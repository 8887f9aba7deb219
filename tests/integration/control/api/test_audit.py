"""The audit log on real servers: a row for each change, with its actor, address, call id, and what it changed."""

import hashlib
import io
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from control.backups import objects
from control.backups.objects import BackupFile
from control.protocol import ltx, wire
from tests.support.control import Control, Joined, Reply, module, until
from tests.unit.control.web.test_audited_operations import AUDITED

POLICY = {"steps": ["1", "100%"]}


def secret(token: str) -> str:
    """The part of a token that only its owner knows."""
    return token.split("_", 2)[2].partition(".")[0]


async def newest(control: Control, action: str) -> Any:
    """The newest row of an action."""
    return next(entry for entry in await control.items("/v1/audit") if entry["action"] == action)


async def test_writes_are_in_the_audit(control: Control) -> None:
    await control.push("hello", module("1"))
    await control.release(functions={"hello": 1})
    deployer = await control.operator("deployer", "deploy")
    reply = await control.call("POST", "/v1/groups", {"name": "east"}, token=deployer)
    entries = await control.items("/v1/audit?limit=2")
    assert [(e["actor_kind"], e["actor"], e["action"], e["target"]) for e in entries[:4]] == [
        ("operator", "deployer", "group.create", "east"),
        ("operator", "admin", "operator.create", "deployer"),
        ("operator", "admin", "release.create", "default/1"),
        ("operator", "admin", "function.push", "hello@1"),
    ]
    assert entries[0]["address"] == "127.0.0.1"
    assert entries[0]["call_id"] == reply.headers["x-request-id"]
    assert secret(deployer) not in str(entries)


async def test_joins_rejoins_and_rotations_are_in_the_audit(control: Control) -> None:
    made = await control.ok("POST", "/v1/join-tokens", {"group": "default"})
    body = {"name": "shop-1", "attempt": str(uuid4())}
    reply = await control.call("POST", "/v1/nodes", body, token=made["token"])
    joined = await newest(control, "node.join")
    first = reply.body["credential"]
    assert (joined["actor_kind"], joined["actor"], joined["target"]) == ("node", "shop-1", "shop-1")
    assert (joined["address"], joined["call_id"]) == ("127.0.0.1", reply.headers["x-request-id"])
    assert joined["details"] == {"join_token": made["id"]}
    [credential] = joined["after"].pop("credentials")
    assert joined["after"] == {"id": reply.body["node_id"], "group": "default"}
    assert joined["before"] == {}

    # The same attempt again, whose answer was lost: the first credential ends.
    second = (await control.ok("POST", "/v1/nodes", body, token=made["token"]))["credential"]
    again = await newest(control, "node.join-again")
    assert again["before"]["credentials"] == [credential]

    rotated = (await control.ok("POST", "/v1/nodes/self/credential", token=second))["credential"]
    rotation = await newest(control, "node.rotate")
    assert (rotation["actor_kind"], rotation["actor"], rotation["target"]) == ("node", "shop-1", "shop-1")
    assert rotation["before"]["credentials"] == again["after"]["credentials"]
    assert len(rotation["after"]["credentials"]) == 2

    made = await control.ok("POST", "/v1/join-tokens", {"rejoin": "shop-1"})
    third = await control.ok("POST", "/v1/nodes", {**body, "attempt": str(uuid4())}, token=made["token"])
    rejoined = await newest(control, "node.rejoin")
    assert rejoined["before"]["credentials"] == sorted(rotation["after"]["credentials"])
    assert rejoined["target"] == "shop-1"

    whole = str(await control.items("/v1/audit"))
    for token in (first, second, rotated, third["credential"], made["token"]):
        assert len(secret(token)) == 43
        assert secret(token) not in whole


async def test_every_operation_that_writes_leaves_a_row(control: Control) -> None:
    """A new operation fails here until it is tried here, and leaves a row."""
    wasm, call = module("1"), control.call
    sha256 = await control.upload(module("other"))
    node = await control.join("shop-1")
    token = (await control.ok("POST", "/v1/join-tokens", {"group": "default"}))["token"]
    unused = (await control.ok("POST", "/v1/join-tokens", {"group": "default"}))["id"]
    version = {"sha256": sha256}
    sql = {"name": "notes", "sql": "CREATE TABLE notes (id INTEGER PRIMARY KEY)"}
    revision = {"sql": "CREATE TABLE notes (id INTEGER PRIMARY KEY);"}
    run = {"id": str(uuid4()), "at": "2026-11-27T12:00:00Z", "user": "ada", "kind": "read", "statement": "SELECT 1"}
    joining = {"name": "n", "attempt": str(uuid4())}
    await control.ok("POST", "/v1/groups", {"name": "west"})
    # In an order in which each finds what it needs.
    tries: dict[tuple[str, str], Callable[[], Awaitable[Reply]]] = {
        ("PUT", "/v1/artifacts/{sha256}"): lambda: put(control, wasm),
        ("POST", "/v1/functions/{name}/versions"): lambda: call("POST", "/v1/functions/f/versions", version),
        ("POST", "/v1/releases"): lambda: call("POST", "/v1/releases", {"functions": {"f": 1}}),
        ("POST", "/v1/schema-changes"): lambda: call("POST", "/v1/schema-changes", sql),
        ("POST", "/v1/schema-changes/{number}/revisions"): lambda: call(
            "POST", "/v1/schema-changes/1/revisions", revision
        ),
        ("POST", "/v1/schema-changes/{number}/withdraw"): lambda: call("POST", "/v1/schema-changes/1/withdraw"),
        ("POST", "/v1/groups"): lambda: call("POST", "/v1/groups", {"name": "east"}),
        ("POST", "/v1/operators"): lambda: call("POST", "/v1/operators", {"name": "ci", "role": "deploy"}),
        ("POST", "/v1/operators/{name}/change"): lambda: call(
            "POST", "/v1/operators/ci/change", {"grants": [{"role": "read"}]}
        ),
        ("POST", "/v1/operators/{name}/rotate"): lambda: call("POST", "/v1/operators/ci/rotate", {"keep_old": 0}),
        ("DELETE", "/v1/operators/{name}"): lambda: call("DELETE", "/v1/operators/ci"),
        ("POST", "/v1/join-tokens"): lambda: call("POST", "/v1/join-tokens", {"group": "east"}),
        ("DELETE", "/v1/join-tokens/{id}"): lambda: call("DELETE", f"/v1/join-tokens/{unused}"),
        ("POST", "/v1/nodes"): lambda: call("POST", "/v1/nodes", joining, token=token),
        ("POST", "/v1/nodes/self/credential"): lambda: call("POST", "/v1/nodes/self/credential", token=node.credential),
        ("POST", "/v1/nodes/self/sql"): lambda: call("POST", "/v1/nodes/self/sql", run, token=node.credential),
        ("POST", "/v1/nodes/{node}/move"): lambda: call("POST", "/v1/nodes/n/move", {"group": "east"}),
        ("POST", "/v1/nodes/{node}/retry"): lambda: call("POST", "/v1/nodes/n/retry"),
        ("POST", "/v1/releases/{group}/{number}/retry"): lambda: call("POST", "/v1/releases/default/1/retry"),
        ("PUT", "/v1/groups/{group}/policy"): lambda: call("PUT", "/v1/groups/default/policy", POLICY),
        **{
            ("POST", f"/v1/rollouts/{{group}}/{{number}}/{deed}"): lambda deed=deed: act(control, deed)
            for deed in ("pause", "resume", "promote", "abort", "retry", "rollback")
        },
        ("DELETE", "/v1/groups/{group}/policy"): lambda: call("DELETE", "/v1/groups/default/policy"),
        ("PUT", "/v1/groups/{group}/backup"): lambda: call("PUT", "/v1/groups/default/backup", {"interval": 5}),
        ("DELETE", "/v1/groups/{group}/backup"): lambda: call("DELETE", "/v1/groups/default/backup"),
        ("POST", "/v1/nodes/{node}/restores"): lambda: restore(control, node),
        ("POST", "/v1/nodes/{node}/resume"): lambda: call("POST", "/v1/nodes/shop-1/resume"),
        ("POST", "/v1/nodes/{node}/labels"): lambda: call("POST", "/v1/nodes/n/labels", {"set": {"till": "2"}}),
        ("POST", "/v1/nodes/{node}/rename"): lambda: call("POST", "/v1/nodes/n/rename", {"name": "m"}),
        ("POST", "/v1/nodes/{node}/revoke"): lambda: call("POST", "/v1/nodes/m/revoke"),
        ("DELETE", "/v1/nodes/{node}"): lambda: call("DELETE", "/v1/nodes/m"),
        ("DELETE", "/v1/groups/{group}"): lambda: call("DELETE", "/v1/groups/west"),
        ("DELETE", "/v1/functions/{name}/versions/{version}"): lambda: call(
            "DELETE", "/v1/functions/f/versions/1?release=true"
        ),
        ("DELETE", "/v1/functions/{name}"): lambda: delete_function(control),
        ("POST", "/v1/webhooks"): lambda: call(
            "POST", "/v1/webhooks", {"name": "chat", "url": "https://example.com/x"}
        ),
        ("POST", "/v1/webhooks/{name}/test"): lambda: call("POST", "/v1/webhooks/chat/test"),
        ("DELETE", "/v1/webhooks/{name}"): lambda: call("DELETE", "/v1/webhooks/chat"),
        ("POST", "/v1/artifact-store/resume"): lambda: call("POST", "/v1/artifact-store/resume"),
        ("POST", "/v1/recovery"): lambda: call("POST", "/v1/recovery"),
    }
    assert set(tries) == AUDITED
    for operation, attempt in tries.items():
        reply = await attempt()
        assert 200 <= reply.status < 300, (operation, reply)
        call_id = reply.headers["x-request-id"]
        rows = [row for row in await control.items("/v1/audit") if row["call_id"] == call_id]
        assert rows, f"{operation} left no row in the audit log"
        assert all(row["actor"] and row["action"] and row["target"] and row["address"] for row in rows)


async def put(control: Control, wasm: bytes) -> Reply:
    path = f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}"
    return await control.call("PUT", path, data=wasm, headers={"content-type": "application/wasm"})


async def act(control: Control, deed: str) -> Reply:
    """Do something to the rollout of the second release, which begins with the first one that comes."""
    if not await control.items("/v1/rollouts"):
        assert (await control.ok("POST", "/v1/releases", {"reason": "in steps"}))["number"] == 2
    return await control.call("POST", f"/v1/rollouts/default/2/{deed}", {})


async def restore(control: Control, node: Joined) -> Reply:
    """Order a restore of a node to the one state that is at the store."""
    await control.services.db.transaction(
        lambda conn: conn.execute("UPDATE nodes SET protocol = $2 WHERE id = $1", node.id, wire.PROTOCOL)
    )
    lineage, out = uuid4().hex, io.BytesIO()
    ltx.write(out, ltx.Header(512, 1, 1, 1, 1_700_000_000_000), [(1, bytes(512))])
    key = objects.key(node.id, lineage, BackupFile(objects.SNAPSHOT, 1, 1))
    await control.services.store.put_new(key, out)
    return await control.call("POST", "/v1/nodes/shop-1/restores", {"to": f"{lineage}/1"})


async def delete_function(control: Control) -> Reply:
    await control.push("f", module("third"))
    return await control.call("DELETE", "/v1/functions/f")


async def test_what_control_does_by_itself_is_in_the_audit(control: Control) -> None:
    await control.push("hello", module("1"))
    await control.ok("DELETE", "/v1/functions/hello")

    async def deleted() -> bool:
        return any(entry["action"] == "artifact.delete" for entry in await control.items("/v1/audit"))

    await until(deleted)
    row = await newest(control, "artifact.delete")
    assert (row["actor_kind"], row["actor"], row["address"], row["call_id"]) == ("control", "deletions", "", "")
    assert row["before"]["object"].startswith(row["target"])
    made = {(row["actor"], row["action"], row["target"]) for row in await control.items("/v1/audit")}
    assert ("migrate", "operator.create", "admin") in made
    assert "artifacts.claim" in {action for _, action, _ in made}


async def test_a_row_has_what_the_change_changed(control: Control) -> None:
    await control.push("hello", module("1"))
    await control.push("hello", module("2"))
    await control.push("other", module("3"))
    await control.release(functions={"hello": 1, "other": 1})
    await control.release(functions={"hello": 2}, reason="faster")
    row = await newest(control, "release.create")
    assert (row["before"], row["after"]) == ({"functions": {"hello": 1}}, {"functions": {"hello": 2}})
    assert row["details"]["reason"] == "faster"
    await control.ok("POST", "/v1/groups", {"name": "east"})
    await control.join("shop-1")
    await control.ok("POST", "/v1/nodes/shop-1/move", {"group": "east"})
    row = await newest(control, "node.move")
    assert (row["before"], row["after"]) == ({"group": "default"}, {"group": "east"})
    await control.operator("ci", "deploy")
    await control.ok("POST", "/v1/operators/ci/change", {"grants": [{"role": "read"}]})
    row = await newest(control, "operator.change")
    assert (row["before"], row["after"]) == ({"grants": ["deploy"]}, {"grants": ["read"]})
    await control.ok("DELETE", "/v1/operators/ci")
    row = await newest(control, "operator.revoke")
    assert (row["before"], row["after"]) == ({"grants": ["read"]}, {})


async def test_the_log_is_filtered_and_paged(control: Control) -> None:
    deployer = await control.operator("deployer", "deploy")
    begin = control.clock.now()
    for number in range(5):
        await control.ok("POST", "/v1/groups", {"name": f"by-admin-{number}"})
        await control.ok("POST", "/v1/groups", {"name": f"by-deployer-{number}"}, token=deployer)
    middle = (await control.items("/v1/audit?target=by-admin-2"))[0]["at"]

    async def targets(query: str) -> list[str]:
        return [row["target"] for row in await control.items(f"/v1/audit?limit=2&{query}")]

    assert await targets("actor=deployer") == [f"by-deployer-{number}" for number in (4, 3, 2, 1, 0)]
    assert await targets("target=by-admin-3") == ["by-admin-3"]
    assert await targets("action=operator.create&actor=admin") == ["deployer"]
    assert await targets("actor=deployer&target=by-admin-3") == []
    assert await targets(f"action=group.create&since={middle}") == [
        *("by-deployer-4", "by-admin-4", "by-deployer-3", "by-admin-3", "by-deployer-2", "by-admin-2"),
    ]
    start = begin.isoformat().replace("+00:00", "Z")
    assert await targets(f"since={start}&until={middle}&actor=admin") == ["by-admin-1", "by-admin-0"]
    for wrong in ("since=yesterday", "since=2026-11-27T12:00:00", "actor=", "operator=admin"):
        reply = await control.call("GET", f"/v1/audit?{wrong}")
        assert (reply.status, reply.code) == (422, "invalid_parameter"), wrong
    for path in ("/v1/audit/sealed", "/v1/audit/seals"):
        assert (await control.call("GET", path, token=deployer)).code == "role_insufficient"
