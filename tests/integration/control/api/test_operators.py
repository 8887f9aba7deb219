"""The operators' API on real servers: functions, schema changes, releases, operators, logs, idempotency."""

import asyncio
from typing import Any

import pytest

from control.local.pki import Pki
from control.protocol import wire
from tests.support.control import Control, module, running, until
from tests.support.cutting import cutting

TABLE = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);"


async def test_versions_count_up_and_are_never_used_again(control: Control) -> None:
    first = await control.push("hello", module("1"), sql="read")
    assert (first["name"], first["version"], first["created_by"]) == ("hello", 1, "admin")
    assert first["manifest"]["sql"] == "read"
    second = await control.push("hello", module("2"))
    assert second["version"] == 2
    await control.ok("DELETE", "/v1/functions/hello/versions/2")
    assert (await control.push("hello", module("2")))["version"] == 3
    assert [v["version"] for v in await control.items("/v1/functions/hello/versions")] == [3, 1]
    [function] = await control.items("/v1/functions")
    assert (function["name"], function["last_version"], function["versions"]) == ("hello", 3, 2)
    assert await control.ok("GET", "/v1/functions/hello/versions/1") == first
    await control.ok("DELETE", "/v1/functions/hello")
    assert await control.items("/v1/functions") == []
    assert (await control.push("hello", module("1")))["version"] == 4


async def test_pushes_at_once_get_a_number_each(control: Control) -> None:
    sha256 = await control.upload(module("1"))
    replies = await asyncio.gather(
        *(control.call("POST", "/v1/functions/busy/versions", {"sha256": sha256}) for _ in range(12))
    )
    assert sorted(reply.body["version"] for reply in replies) == list(range(1, 13))


async def test_a_manifest_must_allow_what_the_module_starts_with(control: Control) -> None:
    wasm = module("1").replace(bytes.fromhex("0503010001"), bytes.fromhex("0503010005"))
    sha256 = await control.upload(wasm)
    reply = await control.call("POST", "/v1/functions/f/versions", {"sha256": sha256, "manifest": {"memory_pages": 4}})
    assert (reply.code, reply.body["field"]) == ("module_refused", "manifest.memory_pages")
    await control.push("f", wasm, memory_pages=5)


async def test_a_deletion_spares_targets_unless_told(control: Control) -> None:
    await control.push("hello", module("1"))
    await control.push("other", module("2"))
    await control.release(functions={"hello": 1, "other": 1}, reason="first")
    for path in ("/v1/functions/hello/versions/1", "/v1/functions/hello"):
        reply = await control.call("DELETE", path)
        assert (reply.status, reply.code) == (409, "version_in_target")
        assert "default" in reply.body["detail"]
    await control.ok("DELETE", "/v1/functions/hello/versions/1?release=true")
    release = await control.ok("GET", "/v1/releases/default/2")
    assert [f["name"] for f in release["functions"]] == ["other"]
    assert "hello@1" in release["reason"]
    # The old release still says what it had.
    old = await control.ok("GET", "/v1/releases/default/1")
    assert {f["name"] for f in old["functions"]} == {"hello", "other"}
    reply = await control.call("POST", "/v1/releases", {"rollback_to": 1})
    assert (reply.code, reply.body["field"]) == ("release_not_possible", "rollback_to")
    assert "hello@1" in reply.body["detail"]


async def test_releases_build_on_the_newest_one(control: Control) -> None:
    await control.push("a", module("a1"))
    await control.push("a", module("a2"))
    await control.push("b", module("b1"))
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    first = await control.release(functions={"a": 1, "b": 1}, schema=0, reason="go")
    assert (first["number"], first["generation"], first["schema_floor"]) == (1, 1, 0)
    assert first["changes"] == {
        "add": [{"name": "a", "version": 1}, {"name": "b", "version": 1}],
        "change": [],
        "remove": [],
        "schema": [],
        "grants": [],
    }
    body = {"functions": {"a": 2}, "remove": ["b"]}
    plan = await control.call("POST", "/v1/releases?plan=true", body)
    assert (plan.status, plan.body["id"]) == (200, None)
    second = await control.release(**body)
    assert {k: v for k, v in plan.body.items() if k not in ("id", "created_at")} == {
        k: v for k, v in second.items() if k not in ("id", "created_at")
    }
    assert second["changes"] == {
        "add": [],
        "change": [{"name": "a", "from": 1, "to": 2}],
        "remove": [{"name": "b", "version": 1}],
        "schema": [{"number": 1, "name": "notes"}],
        "grants": [],
    }
    back = await control.release(rollback_to=1)
    assert (back["number"], back["generation"], back["rollback_to"]) == (3, 3, 1)
    assert (back["functions"], back["schema_floor"]) == (first["functions"], first["schema_floor"])
    assert [r["number"] for r in await control.items("/v1/releases?limit=2")] == [3, 2, 1]
    [group] = await control.items("/v1/groups")
    assert (group["generation"], group["release"]["number"], group["nodes"]) == (3, 3, 0)


async def test_a_dry_run_writes_nothing(control: Control) -> None:
    await control.ok("POST", "/v1/releases?plan=true", {})
    assert await control.items("/v1/releases") == []
    assert all(entry["action"] != "release.create" for entry in await control.items("/v1/audit"))


IMPOSSIBLE: list[tuple[Any, str, str]] = [
    ({"functions": {"nothing": 1}}, "unknown_version", "functions.nothing"),
    ({"functions": {"a": 7}}, "unknown_version", "functions.a"),
    ({"remove": ["a"]}, "unknown_function", "remove"),
    ({"functions": {"a": 1}, "remove": ["a"]}, "invalid_body", "remove"),
    ({"group": "nowhere"}, "unknown_group", "group"),
    ({"schema": 1}, "unknown_schema_change", "schema"),
    ({"rollback_to": 1}, "unknown_release", "rollback_to"),
    ({"rollback_to": 1, "functions": {"a": 1}}, "invalid_body", "rollback_to"),
    ({"functions": {"a": 0}}, "invalid_body", "functions[...]"),
    ({"functions": {"A": 1}}, "invalid_body", "functions"),
]


async def test_a_release_that_can_not_be(control: Control) -> None:
    await control.push("a", module("a"))
    for body, code, field in IMPOSSIBLE:
        reply = await control.call("POST", "/v1/releases", body)
        assert (reply.code, reply.body.get("field")) == (code, field), body
    assert await control.items("/v1/releases") == []


async def test_releases_at_once_take_a_number_and_a_generation_each(control: Control) -> None:
    await control.ok("POST", "/v1/groups", {"name": "east"})
    groups = ["default", "east"] * 6
    made = await asyncio.gather(*(control.ok("POST", "/v1/releases", {"group": name}) for name in groups))
    assert sorted(r["generation"] for r in made) == list(range(1, 13))
    assert sorted(r["number"] for r in made if r["group"] == "east") == list(range(1, 7))


async def test_schema_changes_are_numbered_without_a_gap(control: Control) -> None:
    first = await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    assert (first["number"], first["revision"], first["checksum"]) == (1, 1, wire.schema_checksum(TABLE))
    refused = await control.call("POST", "/v1/schema-changes", {"name": "bad", "sql": "CREATE TABEL x (id);"})
    assert (refused.status, refused.code, refused.body["field"]) == (422, "schema_refused", "sql")
    assert "TABEL" in refused.body["detail"]
    taken = await control.call("POST", "/v1/schema-changes", {"name": "n", "sql": TABLE, "number": 1})
    assert (taken.code, taken.body["field"]) == ("schema_conflict", "number")
    added = "ALTER TABLE notes ADD COLUMN at INTEGER;"
    second = await control.ok("POST", "/v1/schema-changes", {"name": "at", "sql": added, "number": 2})
    assert second["number"] == 2
    assert [c["number"] for c in await control.items("/v1/schema-changes")] == [1, 2]


async def test_what_can_not_run_in_a_transaction_is_refused(control: Control) -> None:
    statements = ["PRAGMA user_version = 1;", "VACUUM;", "BEGIN;", "ATTACH 'x' AS y;", "COMMIT;"]
    bodies = [{"name": "x", "sql": sql} for sql in statements]
    replies = await asyncio.gather(*(control.call("POST", "/v1/schema-changes", body) for body in bodies))
    assert [(reply.status, reply.code) for reply in replies] == [(422, "schema_refused")] * len(statements)
    assert await control.items("/v1/schema-changes") == []


async def test_schema_changes_at_once_are_each_tried_on_the_others(control: Control) -> None:
    replies = await asyncio.gather(
        *(
            control.call(
                "POST", "/v1/schema-changes", {"name": f"t{i % 3}", "sql": f"CREATE TABLE t{i % 3} (id INTEGER);"}
            )
            for i in range(4)
        )
    )
    assert sorted(reply.status for reply in replies) == [201, 201, 201, 422]
    assert [c["number"] for c in await control.items("/v1/schema-changes")] == [1, 2, 3]


async def test_an_amendment_leads_to_the_same_schema(control: Control) -> None:
    await control.ok("POST", "/v1/schema-changes", {"name": "notes", "sql": TABLE})
    index = "CREATE UNIQUE INDEX by_text ON notes (text);"
    await control.ok("POST", "/v1/schema-changes", {"name": "unique", "sql": index})
    amended = f"DELETE FROM notes WHERE id NOT IN (SELECT min(id) FROM notes GROUP BY text);\n{index}"
    made = await control.ok("POST", "/v1/schema-changes/2/revisions", {"sql": amended})
    assert (made["number"], made["revision"], made["name"]) == (2, 2, "unique")
    other = await control.call("POST", "/v1/schema-changes/2/revisions", {"sql": "CREATE TABLE other (id INTEGER);"})
    assert other.code == "schema_refused"
    same = await control.call("POST", "/v1/schema-changes/2/revisions", {"sql": amended})
    assert same.code == "schema_conflict"
    assert (
        await control.call("POST", "/v1/schema-changes/3/revisions", {"sql": index})
    ).code == "unknown_schema_change"
    history = await control.ok("GET", "/v1/schema-changes/2")
    assert (history["sql"], [r["revision"] for r in history["revisions"]]) == (amended, [1, 2])


async def test_operators_have_a_role_and_can_be_revoked(control: Control) -> None:
    reader = await control.operator("reader", "read")
    deployer = await control.operator("deployer", "deploy")
    assert (await control.call("GET", "/v1/functions", token=reader)).status == 200
    for path, body in (("/v1/groups", {"name": "g"}), ("/v1/releases", {}), ("/v1/operators", {})):
        reply = await control.call("POST", path, body, token=reader)
        assert (reply.status, reply.code) == (403, "role_insufficient")
    assert (await control.call("POST", "/v1/groups", {"name": "g"}, token=deployer)).status == 201
    assert (await control.call("GET", "/v1/audit", token=deployer)).status == 403
    assert (await control.call("POST", "/v1/operators", {"name": "reader", "role": "read"})).code == "name_taken"
    await control.ok("DELETE", "/v1/operators/reader")
    assert (await control.call("GET", "/v1/functions", token=reader)).code == "credentials_invalid"
    assert [o["name"] for o in await control.items("/v1/operators")] == ["admin", "deployer"]
    assert (await control.call("DELETE", "/v1/operators/admin")).code == "last_admin"
    assert (await control.call("DELETE", "/v1/operators/reader")).code == "unknown_operator"


async def test_the_same_key_gets_the_same_answer(control: Control) -> None:
    first = await control.call("POST", "/v1/releases", {"reason": "x"}, key="k1")
    again = await control.call("POST", "/v1/releases", {"reason": "x"}, key="k1")
    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert len(await control.items("/v1/releases")) == 1
    other = await control.call("POST", "/v1/releases", {"reason": "y"}, key="k1")
    assert (other.status, other.code, other.body["field"]) == (422, "idempotency_key_used", "Idempotency-Key")
    # Another operator's key is another key.
    deployer = await control.operator("deployer", "deploy")
    theirs = await control.ok("POST", "/v1/releases", {"reason": "x"}, key="k1", token=deployer)
    assert theirs["number"] == 2


async def test_keys_of_requests_at_once(control: Control) -> None:
    replies = await asyncio.gather(*(control.call("POST", "/v1/releases", {}, key="same") for _ in range(8)))
    assert {reply.body["number"] for reply in replies} == {1}
    assert len(await control.items("/v1/releases")) == 1


@pytest.mark.never_retry
async def test_asking_again_after_a_lost_commit_is_safe(database_url: str, bucket_url: str, pki: Pki) -> None:
    async with cutting(database_url) as cutter, running(cutter.url, bucket_url, pki) as control:
        for number, saved in enumerate((False, True, False, True), start=1):
            key = f"key-{number}"
            cutter.before, cutter.after = (0, 1) if saved else (1, 0)
            lost = await control.call("POST", "/v1/releases", {"reason": key}, key=key)
            # A transaction of the replica's own may have been the one that was cut.
            if lost.status == 503:
                assert lost.code == "commit_unknown"
                assert lost.headers["retry-after"]
            made = await control.ok("POST", "/v1/releases", {"reason": key}, key=key)
            assert made["number"] == number
        assert cutter.cuts >= 4
        assert [r["reason"] for r in await control.items("/v1/releases")] == ["key-4", "key-3", "key-2", "key-1"]
        epochs = await control.services.db.read(lambda conn: conn.fetchval("SELECT generation FROM generations"))
        assert epochs == 4


async def test_a_schema_change_under_a_key_is_not_tried_again(control: Control) -> None:
    body = {"name": "notes", "sql": TABLE}
    first = await control.ok("POST", "/v1/schema-changes", body, key="s")
    assert await control.ok("POST", "/v1/schema-changes", body, key="s") == first
    assert len(await control.items("/v1/schema-changes")) == 1


async def test_a_deletion_under_a_key(control: Control) -> None:
    await control.push("hello", module("1"))
    for _ in range(2):
        assert (await control.call("DELETE", "/v1/functions/hello", key="d")).status == 204
    assert (await control.call("DELETE", "/v1/functions/hello", key="e")).code == "unknown_function"


async def test_a_secret_is_made_anew_and_kept_nowhere(control: Control) -> None:
    made = [await control.ok("POST", "/v1/operators", {"name": "bob", "role": "read"}, key="o") for _ in range(2)]
    assert made[0]["token"] != made[1]["token"]
    assert (await control.call("GET", "/v1/functions", token=made[0]["token"])).status == 401
    assert (await control.call("GET", "/v1/functions", token=made[1]["token"])).status == 200
    tables = ("idempotency", "audit", "operators", "join_tokens")
    await control.ok("POST", "/v1/join-tokens", {}, key="j")
    for table in tables:
        text = str(await control.services.db.read(lambda conn, t=table: conn.fetch(f"SELECT * FROM {t}")))  # type: ignore[misc]
        for secret in (made[0]["token"], made[1]["token"], control.token):
            assert secret[-43:] not in text


async def test_refusals_are_counted_by_minute_and_never_hold_the_secret(control: Control) -> None:
    wrong = control.token[:-1] + ("A" if control.token[-1] != "A" else "B")
    for _ in range(20):
        assert (await control.call("GET", "/v1/functions", token=wrong)).code == "credentials_invalid"
    assert (await control.call("GET", "/v1/functions", token="")).code == "credentials_missing"
    await control.services.failures.flush()
    failures = await control.items("/v1/auth-failures?limit=1")
    assert sum(f["count"] for f in failures) == 21
    by_reason = {f["reason"]: f for f in failures}
    assert set(by_reason) == {"wrong_secret", "missing"}
    assert by_reason["wrong_secret"]["address"] == "127.0.0.1"
    assert wrong[-43:] not in str(failures)


async def test_groups(control: Control) -> None:
    made = await control.ok("POST", "/v1/groups", {"name": "east"})
    assert made == {"name": "east", "generation": 0, "release": None, "nodes": 0, "policy": None, "backup": None}
    assert (await control.call("POST", "/v1/groups", {"name": "east"})).code == "name_taken"
    assert [g["name"] for g in await control.items("/v1/groups?limit=1")] == ["default", "east"]


async def test_what_anybody_may_ask(control: Control, pki: Any) -> None:
    assert (await control.ok("GET", "/healthz", token="")) == {"status": "ok"}

    async def ready() -> bool:
        reply = await control.call("GET", "/readyz", token="")
        return bool((reply.status, reply.body) == (200, {"status": "ready"}))

    # An answer doesn't wait long for the database and the store.
    await until(ready)
    ca = await control.call("GET", "/v1/ca", token="")
    assert ca.body == pki.ca.read_bytes()
    assert (await control.ok("GET", "/openapi.json", token=""))["openapi"] == "3.1.0"
