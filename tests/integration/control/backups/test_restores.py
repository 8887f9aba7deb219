"""Restores of nodes: what operators see of them and order, what nodes get and tell, and what a held node gets."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from yarl import URL

from control.backups import losses, objects
from control.protocol import wire
from control.telemetry.fleet_summary import FleetReader
from tests.support import programs, seeds
from tests.support.asked_statements import asking
from tests.support.backup_files import BEGUN_MS, EVERY_MS, history
from tests.support.backup_store import release_id, ship, tell
from tests.support.deadlines import deadline
from tests.support.deploy import code, items, ok
from tests.support.replica import Answered, Replica, Site, TestNode

HOLD = 50.0
SELF = "/v1/nodes/self"
OURS = ("ControlApp.__call__", "WriteBatches.run")
COUNT = 6
"""States of the database, one a transaction."""


async def joined(replica: Replica, name: str = "shop-1") -> TestNode:
    """A node of today's version that has told what it has."""
    node = await replica.join(name)
    node.protocol, node.capabilities = wire.PROTOCOL, {}
    await node.poll()
    return node


async def at_release(replica: Replica, name: str = "shop-1", **release: Any) -> TestNode:
    """The same, at a release with one function."""
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1}, **release)
    node = await joined_behind(replica, name)
    await node.sync()
    return node


async def joined_behind(replica: Replica, name: str) -> TestNode:
    node = await replica.join(name)
    node.protocol, node.capabilities = wire.PROTOCOL, {}
    return node


def when(transaction: int) -> str:
    """Just after a transaction was shipped."""
    time = datetime.fromtimestamp((BEGUN_MS + transaction * EVERY_MS) / 1000 + 1, UTC)
    return time.isoformat()


async def plan(replica: Replica, node: str, to: str, **more: Any) -> Any:
    answer = await replica.call("POST", f"/v1/nodes/{node}/restores?plan=true", {"to": to, **more})
    assert answer.status == 200, answer
    return answer.json()


async def order(replica: Replica, node: str, to: str, **more: Any) -> Any:
    return await ok(replica, "POST", f"/v1/nodes/{node}/restores", {"to": to, **more})


async def refused(replica: Replica, node: str, to: str, **more: Any) -> str:
    return code(await replica.call("POST", f"/v1/nodes/{node}/restores", {"to": to, **more}))


async def got(node: TestNode, id: str) -> Answered:
    return await node.replica.call("GET", f"{SELF}/restores/{id}", token=node.credential)


async def told(node: TestNode, id: str, outcome: str = "done", **more: Any) -> None:
    node.restore = id
    more.setdefault("release_id", await release_id(node.replica, more.get("release", 0)))
    result = wire.RestoreResult(outcome, **more)  # type: ignore[arg-type]
    answer = await node.replica.call("PUT", f"{SELF}/restores/{id}", result, token=node.credential)
    assert answer.status == 204, answer


async def listed(replica: Replica, name: str = "shop-1") -> Any:
    found = await ok(replica, "GET", "/v1/backups")
    return next(backup for backup in found["items"] if backup["node"] == name)


async def fetched(url: str) -> bytes:
    async with aiohttp.ClientSession() as session, session.get(URL(url, encoded=True)) as answer:
        assert answer.status == 200
        return await answer.read()


async def test_a_node_is_told_at_once_and_held_until_it_is_resumed(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    files = history(made)
    lineage = await ship(replica, node, files)
    held = asyncio.create_task(node.poll(HOLD))
    async with deadline(30):
        while node.id not in replica.services.fleet.waiters:
            await asyncio.sleep(0.01)
    ordered = await order(replica, "shop-1", when(3))
    assert (ordered["position"], ordered["state"], ordered["hold"]) == (f"{lineage}/3", "ordered", True)
    answer = await held
    assert (answer.status, answer.json()) == (200, {"type": "restore", "id": ordered["id"]})
    assert (await node.poll()).json()["type"] == "restore"
    assert (await replica.node("shop-1"))["standing"] == "held"

    # What is to be brought back, each file by a URL of its own.
    told_order = (await got(node, ordered["id"])).json()
    assert told_order["position"] == {"lineage": lineage, "transaction": 3}
    assert datetime.fromisoformat(told_order["at"]).timestamp() * 1000 == BEGUN_MS + 3 * EVERY_MS
    expected = [file for file in sorted(files) if file.last <= 3]
    assert sorted(file["name"] for file in told_order["files"]) == sorted(file.name for file in expected)
    for file in told_order["files"]:
        found = objects.parse_name(file["name"], file["size"])
        assert found is not None
        assert await fetched(file["url"]) == files[found]

    before = wire.BackupPosition(lineage, 6)
    for _ in range(2):  # its answer may be lost
        await told(node, ordered["id"], release=1, kept="/var/lib/x", before=before)
    held_one = (await listed(replica))["restore"]
    assert (held_one["state"], held_one["kept"], held_one["kept_position"]) == ("held", "/var/lib/x", f"{lineage}/6")
    assert code(await got(node, ordered["id"])) == "unknown_restore"

    # The next release isn't for it, and its polls cost no query.
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 2})
    assert (await node.poll()).status == 204
    with asking(*OURS) as asked:
        for wait in (0.0, 0.2):
            assert (await node.ask(wait)).status == 204
    assert len(asked) == 0, asked
    shown = await replica.node("shop-1")
    assert (shown["standing"], shown["held"], shown["at_target"]) == ("held", True, False)

    resumed = await ok(replica, "POST", "/v1/nodes/shop-1/resume")
    assert (resumed["state"], resumed["id"]) == ("done", ordered["id"])
    assert (await node.sync()).release_number == 2
    shown = await replica.node("shop-1")
    assert (shown["standing"], shown["held"]) == ("at_target", False)
    answer = await replica.call("POST", "/v1/nodes/shop-1/resume")
    assert code(answer) == "restore_not_possible"
    rows = (await ok(replica, "GET", "/v1/audit?target=shop-1"))["items"]
    assert [row["action"] for row in rows][:2] == ["node.resume", "node.restore"]
    assert rows[1]["details"]["position"] == f"{lineage}/3"


async def test_a_restored_node_has_a_lower_schema_and_gets_the_changes_after_it(
    replica: Replica, made: list[bytes]
) -> None:
    await seeds.function(replica, "hello")
    for number in (1, 2):
        await seeds.schema_change(replica, number, f"CREATE TABLE t{number} (x)")
    await seeds.release(replica, functions={"hello": 1}, schema=1)
    node = await joined_behind(replica, "shop-1")
    await node.sync()
    earlier, generation = node.inventory, node.generation
    lineage = await ship(replica, node, history(made))
    await seeds.release(replica, functions={"hello": 1}, schema=2)
    bad = await node.plan()
    node.apply(bad)
    await node.report(bad.sync_id, "succeeded", boundary=wire.BackupPosition(lineage, 4))
    assert (await replica.node("shop-1"))["schema_version"] == 2

    planned = await plan(replica, "shop-1", "before:2")
    assert planned["position"] == f"{lineage}/4"
    assert planned["undone"] == [{"group": "default", "number": 2}]
    ordered = await order(replica, "shop-1", planned["position"])
    assert ordered["before_release"] == 2
    assert (await node.poll()).json()["type"] == "restore"
    node.inventory, node.generation = earlier, generation
    await told(node, ordered["id"], release=1)
    assert (await node.poll()).status == 204
    shown = await replica.node("shop-1")
    assert (shown["schema_version"], shown["standing"]) == (1, "held")
    # Everywhere it runs the release that it brought back, also while it is to go somewhere else from there.
    other = await joined_behind(replica, "shop-2")
    await other.sync()
    for goes_on in (False, True):
        if goes_on:
            ordered = await order(replica, "shop-1", when(2))
        shown = await replica.node("shop-1")
        assert (shown["release"], shown["target_release"]) == (1, 2)
        for sort in ("name", "standing"):
            names = {
                number: [one["name"] for one in await items(replica, f"/v1/nodes?release={number}&sort={sort}")]
                for number in (1, 2)
            }
            assert names == {1: ["shop-1"], 2: ["shop-2"]}
        reader = FleetReader(replica.services.db, replica.services.clock)
        (group,) = (await reader.summary()).groups
        await reader.stop()
        assert group.counts == {("held", 1): 1, ("at_target", 2): 1}
        assert "1 → 2" in (await programs.skerry(replica, "status")).out.decode()
    await told(node, ordered["id"], release=1)
    # Of another group's releases it has run none, and the restore says whose it has.
    await ok(replica, "POST", "/v1/groups", {"name": "others"})
    await seeds.release(replica, functions={"hello": 1}, schema=2, group="others")
    await ok(replica, "POST", "/v1/nodes/shop-1/move", {"group": "others"})
    shown = await replica.node("shop-1")
    assert (shown["standing"], shown["release"], shown["target_release"]) == ("held", None, 1)
    last = (await items(replica, "/v1/nodes/shop-1/restores"))[0]
    assert (last["release"], last["release_group"]) == (1, "default")
    await ok(replica, "POST", "/v1/nodes/shop-1/move", {"group": "default"})

    # The change was mended meanwhile: the node gets its newest text, and is at the target then.
    await seeds.schema_change(replica, 2, "CREATE TABLE t2 (x, y)", revision=2)
    await ok(replica, "POST", "/v1/nodes/shop-1/resume")
    again = await node.sync()
    assert [(change.number, change.revision) for change in again.schema_changes] == [(2, 2)]
    shown = await replica.node("shop-1")
    assert (shown["schema_version"], shown["standing"]) == (2, "at_target")
    await seeds.release(replica, functions={"hello": 1}, schema=2, reason="the next one")
    assert (await node.poll()).status == 204


async def test_the_boundary_of_a_release_is_the_last_one(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    lineage = await ship(replica, node, history(made))
    assert await refused(replica, "shop-1", "before:2") == "unknown_release"
    assert await refused(replica, "shop-1", "before:1") == "backup_incomplete"
    await seeds.release(replica, functions={"hello": 1}, schema=0, reason="again")
    await seeds.function(replica, "hello")
    for transaction in (2, 5):
        await seeds.release(replica, functions={"hello": 2 if transaction == 2 else 1})
        next_one = await node.plan()
        node.apply(next_one)
        await node.report(next_one.sync_id, "succeeded", boundary=wire.BackupPosition(lineage, transaction))
    assert (await plan(replica, "shop-1", "before:3"))["position"] == f"{lineage}/2"
    found = await plan(replica, "shop-1", "before:4")
    assert (found["position"], [each["number"] for each in found["undone"]]) == (f"{lineage}/5", [4])
    assert [each["number"] for each in (await plan(replica, "shop-1", when(2)))["undone"]] == [3, 4]


async def test_a_restore_that_failed_lets_the_node_go_on(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    await ship(replica, node, history(made))
    ordered = await order(replica, "shop-1", "latest")
    assert (await node.poll()).json()["type"] == "restore"
    await told(node, ordered["id"], "failed", code="disk_full", message="no room for it")
    shown = await replica.node("shop-1")
    assert (shown["standing"], shown["held"]) == ("at_target", False)
    assert (await node.poll()).status == 204
    failed = (await listed(replica))["restore"]
    assert (failed["state"], failed["code"], failed["message"]) == ("failed", "disk_full", "no room for it")
    out = (await programs.skerry(replica, "data", "list")).out.decode()
    assert "the restore failed: no room" in out
    assert "disk_full" in out


async def test_a_restore_is_cancelled_before_it_is_done(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    await ship(replica, node, history(made))
    first = await order(replica, "shop-1", "latest")
    assert await refused(replica, "shop-1", "latest") == "restore_not_possible"
    assert (await ok(replica, "POST", "/v1/nodes/shop-1/resume"))["state"] == "cancelled"
    assert (await node.poll()).status == 204
    assert code(await got(node, first["id"])) == "unknown_restore"
    # The node was faster: it isn't held, and that is said.
    await told(node, first["id"], release=1)
    late = (await listed(replica))["restore"]
    assert (late["state"], late["message"]) == ("done", "it was cancelled, but the node had done it already")
    assert not (await replica.node("shop-1"))["held"]


async def test_a_held_node_can_be_brought_somewhere_else(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    await ship(replica, node, history(made))
    first = await order(replica, "shop-1", when(5))
    await told(node, first["id"], release=1)
    second = await order(replica, "shop-1", when(2))
    assert (await node.poll()).json() == {"type": "restore", "id": second["id"]}
    found = (await ok(replica, "GET", "/v1/nodes/shop-1/restores?limit=1"))["items"]
    assert [(each["id"], each["state"]) for each in found] == [(second["id"], "ordered")]
    everything = (await ok(replica, "GET", "/v1/nodes/shop-1/restores"))["items"]
    assert [(each["id"], each["state"]) for each in everything] == [(second["id"], "ordered"), (first["id"], "done")]


async def test_who_can_not_be_brought_back(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    await ship(replica, node, history(made))
    assert await refused(replica, "none", "latest") == "unknown_node"
    for wrong in ("", "yesterday", "before:", "before:x", "2026-12-02", "0" * 32, f"{'0' * 32}/0", "x" * 201):
        assert await refused(replica, "shop-1", wrong) == "invalid_body", wrong
    assert await refused(replica, "shop-1", f"{uuid4().hex}/1") == "backup_incomplete"
    assert await refused(replica, "shop-1", "2020-01-01T00:00:00Z") == "backup_incomplete"
    old = await replica.join("old")
    old.protocol, old.capabilities = wire.BACKUP_PROTOCOL - 1, {}
    await old.poll()
    await ship(replica, old, history(made))
    assert await refused(replica, "old", "latest") == "restore_not_possible"
    assert (await old.poll()).status == 200  # its plan
    await ok(replica, "POST", "/v1/nodes/shop-1/revoke")
    assert await refused(replica, "shop-1", "latest") == "restore_not_possible"
    reader = (await ok(replica, "POST", "/v1/operators", {"name": "ada", "role": "read"}))["token"]
    for path in ("/v1/nodes/shop-1/restores", "/v1/nodes/shop-1/resume"):
        body = {"to": "latest"} if path.endswith("restores") else None
        answer = await replica.call("POST", path, body, token=reader)
        assert code(answer) == "role_insufficient"


async def test_another_nodes_database_is_adopted_only_knowingly(replica: Replica, made: list[bytes]) -> None:
    node, other = await at_release(replica), await joined_behind(replica, "shop-2")
    files = history(made)
    lineage = await ship(replica, other, files)
    going = await other.plan()
    other.apply(going)
    await other.report(going.sync_id, "succeeded", boundary=wire.BackupPosition(lineage, 2))
    assert await refused(replica, "shop-1", f"{lineage}/3") == "backup_incomplete"
    for wrong in ({"from": "shop-2"}, {"adopt": True}, {"adopt": True, "from": "shop-1"}):
        assert await refused(replica, "shop-1", "latest", **wrong) == "invalid_body"
    assert await refused(replica, "shop-1", "latest", adopt=True, **{"from": "none"}) == "unknown_node"
    # The rows of the other node are its group's.
    await ok(replica, "POST", "/v1/groups", {"name": "east"})
    await ok(replica, "POST", "/v1/nodes/shop-2/move", {"group": "east"})
    body = {"name": "ada", "grants": [{"role": "deploy", "group": "default"}, {"role": "read", "group": "east"}]}
    deployer = (await ok(replica, "POST", "/v1/operators", body))["token"]
    wanted = {"to": "latest", "adopt": True, "from": "shop-2"}
    answer = await replica.call("POST", "/v1/nodes/shop-1/restores", wanted, token=deployer)
    assert code(answer) == "role_insufficient"
    ordered = await order(replica, "shop-1", f"{lineage}/2", adopt=True, **{"from": "shop-2"})
    assert (ordered["from_node"], ordered["before_release"]) == ("shop-2", 1)
    told_order = (await got(node, ordered["id"])).json()
    assert len(told_order["files"]) == 2
    for file in told_order["files"]:
        found = objects.parse_name(file["name"], file["size"])
        assert found is not None
        assert await fetched(file["url"]) == files[found]
    assert code(await got(other, ordered["id"])) == "unknown_restore"
    await told(node, ordered["id"], "failed")
    # The backup of a node that was removed is there for a while.
    await ok(replica, "DELETE", "/v1/nodes/shop-2")
    assert await refused(replica, "shop-1", "latest", adopt=True, **{"from": "shop-2"}) == "unknown_node"
    wanted["from"] = other.id
    answer = await replica.call("POST", "/v1/nodes/shop-1/restores", wanted, token=deployer)
    assert code(answer) == "unknown_node"
    ordered = await order(replica, "shop-1", "latest", adopt=True, **{"from": other.id})
    assert ordered["position"] == f"{lineage}/{COUNT}"
    assert len((await got(node, ordered["id"])).json()["files"]) == COUNT


async def test_a_private_store_gives_files_through_control(control_site: Site, made: list[bytes]) -> None:
    async with control_site.running(artifacts_delivery="control") as replica:
        node, other = await joined(replica), await joined(replica, "shop-2")
        files = history(made)
        own, others = await ship(replica, node, files), await ship(replica, other, files)

        async def get(url: str, **headers: str) -> tuple[int, bytes]:
            more = {"authorization": f"Bearer {node.credential}", **headers}
            async with replica.session.get(replica.url + url, headers=more) as answer:
                return answer.status, await answer.read()

        latest = (await replica.call("GET", f"{SELF}/backup/latest", token=node.credential)).json()
        assert len(latest["files"]) == COUNT
        for file in latest["files"]:
            assert file["url"] == f"{SELF}/backup/files/{own}/{file['name']}"
            data = files[objects.parse_name(file["name"], file["size"])]  # type: ignore[index]
            assert await get(file["url"]) == (200, data)
            assert await get(file["url"], range="bytes=10-19") == (206, data[10:20])
        name = latest["files"][0]["name"]
        for foreign, status in ((f"{others}/{name}", 404), (f"{own}/{name[:-1]}", 404), (f"x/{name}", 422)):
            assert (await get(f"{SELF}/backup/files/{foreign}"))[0] == status
        ordered = await order(replica, "shop-1", "latest", adopt=True, **{"from": "shop-2"})
        assert (await get(f"{SELF}/backup/files/{others}/{name}"))[0] == 200
        await told(node, ordered["id"], "failed")
        assert (await get(f"{SELF}/backup/files/{others}/{name}"))[0] == 404


async def test_a_node_that_joins_again_gets_its_last_state(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)

    async def latest() -> Answered:
        return await replica.call("GET", f"{SELF}/backup/latest", token=node.credential)

    assert code(await latest()) == "unknown_backup"
    files = history(made)
    old = await ship(replica, node, files)
    assert (await latest()).json()["position"] == {"lineage": old, "transaction": COUNT}
    # A newer history whose snapshot never came to its end has no state yet.
    unfinished = {file: data for file, data in files.items() if file.level == objects.SHIPMENT}
    new = await ship(replica, node, unfinished)
    assert (await plan(replica, "shop-1", "latest"))["position"] == f"{old}/{COUNT}"
    assert (await latest()).json()["position"] == {"lineage": old, "transaction": COUNT}
    snapshot = {file: data for file, data in files.items() if file.level == objects.SNAPSHOT}
    await ship(replica, node, snapshot, new)
    assert (await latest()).json()["position"] == {"lineage": new, "transaction": COUNT}
    missing = next(file for file in files if file.last == 4)
    await replica.services.store.delete(objects.key(node.id, new, missing))
    assert (await latest()).json()["position"] == {"lineage": new, "transaction": 3}
    assert await refused(replica, "shop-1", "latest") == "backup_incomplete"

    # What it brought back may be older than what control knew: it is at an earlier release, and gets the present one.
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 2})
    earlier, generation = node.inventory, node.generation
    await node.sync()
    token = (await ok(replica, "POST", "/v1/join-tokens", {"rejoin": "shop-1"}))["token"]
    answer = await replica.call("POST", "/v1/nodes", wire.Join("shop-1", str(uuid4())), token=token)
    node.credential, node.inventory, node.generation = answer.json()["credential"], earlier, generation
    assert (await latest()).status == 200
    assert (await node.sync()).release_number == 2


async def test_an_order_stays_for_a_node_that_joins_again(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    await ship(replica, node, history(made))
    ordered = await order(replica, "shop-1", when(2))
    token = (await ok(replica, "POST", "/v1/join-tokens", {"rejoin": "shop-1"}))["token"]
    answer = await replica.call("POST", "/v1/nodes", wire.Join("shop-1", str(uuid4())), token=token)
    node.credential = answer.json()["credential"]
    assert (await node.poll()).json() == {"type": "restore", "id": ordered["id"]}


async def test_a_node_gets_the_functions_of_what_it_brings_back(replica: Replica, made: list[bytes]) -> None:
    await ok(replica, "POST", "/v1/groups", {"name": "east"})
    node, other = await at_release(replica), await replica.join("shop-2", "east")
    await seeds.function(replica, "far")
    await seeds.release(replica, "east", functions={"far": 1})
    await other.sync()
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 2})
    await node.sync()

    async def forget_syncs(conn: Any) -> None:
        await conn.execute("DELETE FROM syncs")

    await replica.services.db.transaction(forget_syncs)

    async def gets(function: str, version: int) -> bool:
        path = f"/v1/artifacts/{wire.schema_checksum(f'{function} {version}')}"
        answer = await replica.call("GET", path, token=node.credential)
        assert answer.status in (307, 404)
        return answer.status == 307

    assert [await gets("hello", 2), await gets("hello", 1), await gets("far", 1)] == [True, False, False]
    await ship(replica, node, history(made))
    assert [await gets("hello", 1), await gets("far", 1)] == [True, False]
    await ship(replica, other, history(made))
    ordered = await order(replica, "shop-1", "latest", adopt=True, **{"from": "shop-2"})
    assert await gets("far", 1)
    # What no node has run is nobody's.
    await seeds.function(replica, "far")
    await seeds.release(replica, "east", functions={"far": 2})
    assert not await gets("far", 2)
    await told(node, ordered["id"], "failed")
    assert not await gets("far", 1)


async def test_the_plan_says_what_would_be_gone(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    files = history(made)
    lineage = await ship(replica, node, files)
    newest = datetime.fromtimestamp((BEGUN_MS + COUNT * EVERY_MS) / 1000 + 5, UTC)
    await tell(node, lineage, COUNT, newest)
    found = await plan(replica, "shop-1", when(2))
    assert found["tables"] == [{"table": "orders", "then": 6, "now": 18}]
    assert (found["tables_unknown"], found["findings"]) == ("", [])
    # Up to its last write: that the store had all of it for five seconds more is no loss.
    assert found["newer"] == (COUNT - 2) * EVERY_MS / 1000
    assert (found["files"], found["size"]) == (2, len(made[1]))
    assert found["read"] == sum(file.size for file in files if file.last <= 2)
    assert found["release"] is None  # the database has none
    latest = await plan(replica, "shop-1", "latest")
    assert (latest["tables"], latest["newer"]) == ([], 0)
    assert (await replica.node("shop-1"))["held"] is False, "nothing was ordered"


async def test_a_plan_beyond_its_bounds_says_so(
    replica: Replica, made: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await at_release(replica)
    files = history(made)
    lineage = await ship(replica, node, files)
    monkeypatch.setattr(losses, "MOST_BYTES", len(made[0]))
    found = await plan(replica, "shop-1", when(2))
    assert (found["position"], found["tables"]) == (f"{lineage}/2", None)
    assert "plans compare" in found["tables_unknown"]
    monkeypatch.undo()
    for seconds, why in ((0.0, "weren't made within 0 s"), (None, "of transactions 5 to 5 no file")):
        if seconds is None:
            missing = next(file for file in files if file.last == 5)
            await replica.services.store.delete(objects.key(node.id, lineage, missing))
        else:
            monkeypatch.setattr(losses, "SECONDS", seconds)
        found = await plan(replica, "shop-1", when(2))
        assert found["tables"] is None
        assert why in found["tables_unknown"]
        monkeypatch.undo()


async def test_what_nodes_tell_is_kept(replica: Replica, made: list[bytes]) -> None:
    node, quiet = await at_release(replica), await joined_behind(replica, "shop-2")
    now = replica.services.clock.now()
    assert (await ok(replica, "GET", "/v1/backups"))["items"] == []
    await ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 10})
    assert [each["node"] for each in (await ok(replica, "GET", "/v1/backups?group=default"))["items"]] == [
        *("shop-1", "shop-2")
    ]
    assert (await listed(replica, "shop-2"))["lag"] is None
    lineage = await ship(replica, node, history(made))
    await tell(node, lineage, 5, now - timedelta(seconds=30))
    found = await listed(replica)
    assert (found["lineage"], found["error"], found["interval"]) == (lineage, "", 10.0)
    assert 29 <= found["lag"] <= 40
    # An older report that comes late takes nothing back, and a clock that is ahead has reached no later time than now.
    await tell(node, lineage, 3, now - timedelta(seconds=90), sequence=2, error="the folder is full")
    history_one = (await ok(replica, "GET", "/v1/nodes/shop-1/backup"))["histories"][0]
    assert (history_one["reached"], history_one["error"]) == (5, "the folder is full")
    assert datetime.fromisoformat(history_one["reached_at"]) >= (now - timedelta(seconds=31)).replace(microsecond=0)
    for sequence, ahead in enumerate((int(now.timestamp()) + 86_400, 2**53), start=3):
        await tell(node, lineage, 6, ahead, sequence=sequence)
        found = await listed(replica)
        assert found["lag"] == 0.0
        assert datetime.fromisoformat(found["reached_at"]) <= replica.services.clock.now()
    # A node that has got no place for a file yet says why.
    await tell(quiet, uuid4().hex, 0, now, error="the database can't be read")
    assert (await listed(replica, "shop-2"))["error"] == "the database can't be read"
    # Another history takes its place; what is told of the old one opens nothing.
    newer = await ship(replica, node, history(made))
    await tell(node, lineage, 9, now, sequence=9)
    found = await ok(replica, "GET", "/v1/nodes/shop-1/backup")
    assert [(each["lineage"], each["ended_at"] is None) for each in found["histories"]] == [
        *((newer, True), (lineage, False))
    ]
    assert found["lineage"] == newer
    assert code(await replica.call("GET", "/v1/backups?group=none")) == "unknown_group"
    await ok(replica, "DELETE", "/v1/groups/default/backup")
    await replica.join("shop-3")
    assert code(await replica.call("GET", "/v1/nodes/shop-3/backup")) == "unknown_backup"


async def test_commands_show_plan_order_and_resume(replica: Replica, made: list[bytes]) -> None:
    node = await at_release(replica)
    lineage = await ship(replica, node, history(made))
    await ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 10})
    newest = datetime.fromtimestamp((BEGUN_MS + COUNT * EVERY_MS) / 1000, UTC)
    await tell(node, lineage, COUNT, newest)

    async def skerry(*arguments: str, status: int = 0) -> str:
        done = await programs.skerry(replica, "data", *arguments)
        assert done.status == status, done
        return done.out.decode()

    out = await skerry("list", "--group", "default")
    assert f"{newest:%Y-%m-%d %H:%M:%S} UTC" in out
    planned = await skerry("restore", "shop-1", "--to", when(2), "--plan")
    assert f"({lineage}/2)" in planned
    assert "table orders: 6 rows, now 18" in planned
    assert "  - what was written since is gone: 80 s up to 2023-11-14 22:15:20 UTC, and what isn't" in planned
    assert "  - what isn't at the store yet is gone\n" in await skerry("restore", "shop-1", "--to", "latest", "--plan")
    assert (await replica.node("shop-1"))["held"] is False
    assert json.loads(await skerry("restore", "shop-1", "--to", "latest", "--plan", "--json"))["tables"] == []
    done = await skerry("restore", "shop-1", "--to", when(2), "--reason", "orders were lost", "--yes")
    assert "is held there" in done
    assert "goes to" in await skerry("list")
    assert "held" in (await programs.skerry(replica, "node", "list")).out.decode()
    shown = (await programs.skerry(replica, "node", "show", "shop-1")).out.decode()
    assert "skerry data resume shop-1" in shown
    assert "cancelled" in await skerry("resume", "shop-1")
    ordered = json.loads(await skerry("restore", "shop-1", "--to", f"{lineage}/4", "--json", "--yes"))
    assert (ordered["position"], ordered["plan"]["position"]) == (f"{lineage}/4", f"{lineage}/4")
    await told(node, ordered["id"], release=1)
    assert "held at" in await skerry("list")
    assert "its group's release again" in await skerry("resume", "shop-1")
    await skerry("resume", "shop-1", status=3)
    await skerry("restore", "shop-1", "--to", "yesterday", "--yes", status=2)
    await skerry("restore", "shop-1", "--to", "latest", status=2)  # nobody answers the question
    assert (await replica.node("shop-1"))["held"] is False
