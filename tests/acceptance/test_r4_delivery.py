"""Requirement 4: nodes get the newest functions and schema."""

import hashlib

import asyncpg

from control.protocol import wire
from tests.guests.version import version
from tests.support import deploy
from tests.support.clock import SetClock
from tests.support.deploy import code, ok
from tests.support.replica import Replica, Site


async def test_r4_1_a_sync_returns_the_functions_to_deliver(live: Replica) -> None:
    made = {}
    for name, number in (("show", 1), ("show", 2), ("other", 1), ("unused", 1)):
        wasm = version(number, f"SELECT '{name}'")
        made[name, number] = hashlib.sha256(wasm).hexdigest(), len(wasm)
        await deploy.push(live, name, wasm, sql="read", config={"NAME": name})
    await deploy.release(live, functions={"show": 1, "other": 1})
    node = await live.join("one")
    plan = await node.sync()
    assert [(f.name, f.version) for f in plan.functions] == [("other", 1), ("show", 1)]
    assert plan.remove == []
    for f in plan.functions:
        assert (f.sha256, f.size) == made[f.name, f.version]
        assert (f.manifest["sql"], f.manifest["config"]) == ("read", {"NAME": f.name})
        assert f.url

    # The next release says what is new, what stays and what goes.
    await deploy.release(live, functions={"show": 2}, remove=["other"])
    plan = await node.plan()
    assert [(f.name, f.version, f.sha256) for f in plan.functions] == [("show", 2, made["show", 2][0])]
    assert plan.remove == ["other"]
    # Another group's nodes get another list.
    await ok(live, "POST", "/v1/groups", {"name": "canary"})
    await deploy.release(live, group="canary", functions={"unused": 1})
    canary = await (await live.join("two", group="canary")).plan()
    assert [(f.name, f.version) for f in canary.functions] == [("unused", 1)]


async def test_r4_2_a_node_gets_the_binary_from_the_artifact_store(live: Replica) -> None:
    wasm, other = version(1), version(2)
    await deploy.push(live, "show", wasm)
    hidden = (await deploy.push(live, "hidden", other))["sha256"]
    await ok(live, "POST", "/v1/groups", {"name": "apart"})
    await deploy.release(live, functions={"show": 1})
    await deploy.release(live, group="apart", functions={"hidden": 1})
    node = await live.join("one")
    [planned] = (await node.plan()).functions

    # From the store itself, by a URL that is good without any credential of control's.
    async with live.session.get(planned.url) as answer:
        assert (answer.status, await answer.read()) == (200, wasm)
    async with live.session.get(planned.url, headers={"Range": "bytes=10-"}) as answer:
        assert (answer.status, await answer.read()) == (206, wasm[10:])
    assert not planned.url.startswith(live.url)
    async with live.session.get(planned.url.replace("X-Amz-Expires=", "X-Amz-Expires=9")) as answer:
        assert answer.status == 403
    async with live.session.get(planned.url.partition("?")[0]) as answer:
        assert answer.status == 403

    # A fresh URL later.
    path = f"/v1/artifacts/{planned.sha256}"
    redirect = await live.call("GET", path, token=node.credential)
    assert redirect.status == 307
    async with live.session.get(redirect.headers["location"]) as answer:
        assert (answer.status, await answer.read()) == (200, wasm)
    # Not what another group's release has, and not for others.
    for sha256 in (hidden, "0" * 64):
        refused = await live.call("GET", f"/v1/artifacts/{sha256}", token=node.credential)
        assert (refused.status, code(refused)) == (404, "unknown_artifact")
    apart = await live.join("two", group="apart")
    assert (await live.call("GET", path, token=apart.credential)).status == 404
    assert (await live.call("GET", f"/v1/artifacts/{hidden}", token=apart.credential)).status == 307
    for token in ("", live.admin):
        assert (await live.call("GET", path, token=token)).status == 401


async def test_r4_2_or_through_control_where_the_store_is_private(control_site: Site) -> None:
    wasm = version(1)
    async with control_site.running(artifacts_delivery="control") as replica:
        await deploy.push(replica, "show", wasm)
        await deploy.release(replica, functions={"show": 1})
        node = await replica.join("one")
        [planned] = (await node.plan()).functions
        assert planned.url == f"/v1/artifacts/{planned.sha256}"
        got = await replica.call("GET", planned.url, token=node.credential)
        assert (got.status, got.body) == (200, wasm)
        headers = {"authorization": f"Bearer {node.credential}", "range": "bytes=10-19"}
        async with replica.session.get(replica.url + planned.url, headers=headers) as answer:
            assert (answer.status, await answer.read()) == (206, wasm[10:20])
        assert (await replica.call("GET", planned.url, token="")).status == 401


async def test_r4_3_the_deployment_is_compared_with_the_target(live: Replica) -> None:
    node = await live.join("one")
    assert (await node.poll()).status == 204, "without a release there is nothing to do"
    for number in (1, 2):
        await deploy.push(live, "show", version(number), sql="read")
    await deploy.schema(live, deploy.ITEMS)
    dry = await live.call("POST", "/v1/releases?plan=true", {"functions": {"show": 1}})
    assert [(c["name"], c["version"]) for c in dry.json()["changes"]["add"]] == [("show", 1)]
    assert (await node.poll()).status == 204, "a dry run changes no target"

    async def stands() -> tuple[bool, int, int]:
        shown = await live.node("one")
        return shown["at_target"], shown["generation"], shown["target_generation"]

    release = await deploy.release(live, functions={"show": 1})
    assert await stands() == (False, 0, release["generation"])
    await node.sync()
    assert await stands() == (True, release["generation"], release["generation"])
    assert (await node.poll()).status == 204

    # The same content by another decision: compared, and found to be there.
    again = await deploy.release(live, functions={"show": 1})
    assert (await node.poll()).status == 204
    assert await stands() == (True, again["generation"], again["generation"])

    # A function missing, another version, other bytes, another manifest, one too many: each is a difference.
    good = node.inventory
    [show] = good.functions
    for wrong in (
        [],
        [wire.RunningFunction("show", 2, show.sha256, show.manifest_digest)],
        [wire.RunningFunction("show", 1, "0" * 64, show.manifest_digest)],
        [wire.RunningFunction("show", 1, show.sha256, "0" * 64)],
        [show, wire.RunningFunction("extra", 1, show.sha256, show.manifest_digest)],
    ):
        node.inventory = wire.Inventory(good.schema_version, good.schema_changes, wrong, good.database_id)
        plan = await node.plan()
        assert (plan.schema_changes, [f.name for f in plan.functions]) == ([], ["show"])
        assert plan.remove == (["extra"] if len(wrong) == 2 else [])
        assert (await stands())[0] is False
    # A lost database: everything from the start.
    node.inventory = wire.Inventory(database_id="another")
    plan = await node.sync()
    assert ([c.number for c in plan.schema_changes], [f.name for f in plan.functions]) == ([1], ["show"])
    assert (await stands())[0] is True

    # In another group it is compared with that group's target.
    await ok(live, "POST", "/v1/groups", {"name": "canary"})
    await deploy.release(live, group="canary", functions={"show": 2})
    await ok(live, "POST", "/v1/nodes/one/move", {"group": "canary"})
    assert [(f.name, f.version) for f in (await node.sync()).functions] == [("show", 2)]
    assert (await stands())[0] is True


async def test_r4_4_a_completed_sync_is_recorded(
    replica: Replica, clock: SetClock, metadata: asyncpg.Connection
) -> None:
    async def recorded() -> list[tuple[str, int, str]]:
        rows = [
            tuple(row) for row in await metadata.fetch("SELECT name, version, sha256 FROM node_functions ORDER BY 1")
        ]
        assert [(f["name"], f["version"], f["sha256"]) for f in (await replica.node("one"))["functions"]] == rows
        return rows

    node = await replica.join("one")
    made = [await deploy.push(replica, name, version(1, f"SELECT '{name}'"), sql="read") for name in ("a", "b")]
    await deploy.release(replica, functions={"a": 1, "b": 1})
    plan = await node.plan()
    assert await recorded() == [], "begun isn't completed"
    assert (await node.report(plan.sync_id, "running", step="fetch")).status == 200
    assert await recorded() == []
    clock.advance(5)
    node.apply(plan)
    assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"
    assert await recorded() == [(f["name"], 1, f["sha256"]) for f in made]
    row = await metadata.fetchrow("SELECT schema_version, synced_at, digest FROM nodes")
    assert row is not None
    assert tuple(row) == (0, clock.time, wire.digest(node.inventory))

    # A node that says it succeeded and doesn't run the release: what it runs is recorded, as a failure.
    changed = await deploy.push(replica, "a", version(2), sql="read")
    await deploy.release(replica, functions={"a": 2}, remove=["b"])
    plan = await node.plan()
    answer = await node.report(plan.sync_id, "succeeded")
    assert answer.json()["status"] == "failed"
    assert await recorded() == [(f["name"], 1, f["sha256"]) for f in made]
    shown = await replica.node("one")
    assert (shown["at_target"], shown["error"]["code"], shown["failures"]) == (False, "not_at_target", 1)
    await node.sync()
    assert await recorded() == [("a", 2, changed["sha256"])]
    # The same report again records nothing twice.
    before = await metadata.fetch("SELECT * FROM syncs")
    assert (await node.report(plan.sync_id, "succeeded")).status == 200
    assert len(await metadata.fetch("SELECT * FROM syncs")) == len(before)
