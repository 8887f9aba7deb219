"""Rollbacks with data: who goes back and who can't, what they have then, and what the next releases are for them."""

from typing import Any

from control.protocol import wire
from tests.support import programs, seeds
from tests.support.backup_files import history
from tests.support.backup_store import release_id, ship
from tests.support.deploy import code, items, ok
from tests.support.replica import Replica, TestNode
from tests.support.rollouts import open_rollout

SELF = "/v1/nodes/self"
COUNT = 6
"""States of the database, one a transaction."""
ROLLBACK = {"rollback": True, "data": True}


async def joined(replica: Replica, name: str, protocol: int = wire.PROTOCOL) -> TestNode:
    node = await replica.join(name)
    node.protocol, node.capabilities = protocol, {}
    return node


async def goes(node: TestNode, boundary: wire.BackupPosition | None) -> wire.Plan:
    """Have a node go to its target from a state of its database."""
    plan = await node.plan()
    node.apply(plan)
    assert (await node.report(plan.sync_id, "succeeded", boundary=boundary)).status == 200
    return plan


async def brought_back(node: TestNode, had: tuple[wire.Inventory, int], release: int = 1) -> None:
    """Have a node carry out its restore: it has what it had."""
    answer = (await node.poll()).json()
    assert answer["type"] == "restore"
    assert (await node.replica.call("GET", f"{SELF}/restores/{answer['id']}", token=node.credential)).status == 200
    node.inventory, node.generation = had
    node.restore = answer["id"]
    result = wire.RestoreResult("done", release=release, release_id=await release_id(node.replica, release))
    told = await node.replica.call("PUT", f"{SELF}/restores/{answer['id']}", result, token=node.credential)
    assert told.status == 204


async def plan(replica: Replica, **body: Any) -> Any:
    answer = await replica.call("POST", "/v1/releases?plan=true", body)
    assert answer.status == 200, answer
    return answer.json()


async def undo_of(replica: Replica, number: int) -> dict[str, int]:
    found = (await ok(replica, "GET", f"/v1/releases/default/{number}"))["undo"]
    return {name: count for name, count in found.items() if count}


async def base(replica: Replica) -> None:
    """A good release, 1, with the schema 1."""
    for _ in range(2):
        await seeds.function(replica, "hello")
    for number in (1, 2):
        await seeds.schema_change(replica, number, f"CREATE TABLE t{number} (x)")
    await seeds.release(replica, functions={"hello": 1}, schema=1)


async def test_a_bad_release_is_undone_with_its_data_and_the_next_one_is_for_all(
    replica: Replica, made: list[bytes]
) -> None:
    await base(replica)
    back, bare, away = [await joined(replica, name) for name in ("back", "bare", "away")]
    old = await joined(replica, "old", wire.BACKUP_PROTOCOL - 1)
    for node in (back, bare, away, old):
        await node.sync()
    had = back.inventory, back.generation
    lineage = await ship(replica, back, history(made))
    await seeds.release(replica, functions={"hello": 2}, schema=2)
    await goes(back, wire.BackupPosition(lineage, 4))
    await goes(bare, None)
    await goes(old, None)

    planned = await plan(replica, **ROLLBACK)
    undo = planned["undo"]
    assert (undo["above"], undo["back"], undo["left"]) == (1, 1, 2)
    (one,) = undo["nodes"]
    assert (one["node"], one["release"], one["position"]) == ("back", 2, f"{lineage}/4")
    assert one["tables"] == [{"table": "orders", "then": 12, "now": 18}]
    state = await ok(replica, "POST", "/v1/nodes/back/restores?plan=true", {"to": "before:2"})
    assert (one["at"], one["newest_at"], one["newer"]) == (state["at"], state["newest_at"], state["newer"])
    assert [(each["node"], each["code"]) for each in undo["left_nodes"]] == [
        ("bare", "backup_incomplete"),
        ("old", "restore_not_possible"),
    ]
    release = await ok(replica, "POST", "/v1/releases", {**ROLLBACK, "plan_digest": planned["plan_digest"]})
    assert (release["number"], release["schema_floor"]) == (3, 1)
    assert await undo_of(replica, 3) == {"release": 3, "ordered": 1, "left": 2}

    # Who stays gets the functions of before at once, and keeps its schema.
    assert [(each.name, each.version) for each in (await bare.sync()).functions] == [("hello", 1)]
    assert (await replica.node("bare"))["schema_version"] == 2
    assert (await away.poll()).status == 204
    assert (await replica.node("back"))["held"]
    # Who goes back has the rollback's release then, and isn't held.
    await brought_back(back, had)
    assert (await back.poll()).status == 204
    shown = await replica.node("back")
    assert (shown["standing"], shown["schema_version"], shown["held"]) == ("at_target", 1, False)
    assert await undo_of(replica, 3) == {"release": 3, "done": 1, "left": 2}
    found = {each["node"]: each for each in await items(replica, "/v1/releases/default/3/restores")}
    # It is of the time of that state, not of when the node came to the release.
    assert found["back"]["at"] == state["at"]
    assert {name: (each["state"], each["position"], each["before_release"]) for name, each in found.items()} == {
        "back": ("done", f"{lineage}/4", 2),
        "bare": ("failed", "", 2),
        "old": ("failed", "", 2),
    }

    # The next release leaves the schema of all where it is: the change of the bad one doesn't come by the way.
    await seeds.function(replica, "hello")
    following = await seeds.release(replica, functions={"hello": 3})
    assert (following["schema_floor"], following["held_below"]) == (1, 2)
    for node in (back, bare, away):
        assert (await node.sync()).schema_changes == []
        assert (await replica.node(seeds.name_of(replica, node)))["standing"] == "at_target"
    # With the mended change, who lacks it gets its newest revision; who stayed has the one that it applied.
    await seeds.schema_change(replica, 2, "CREATE TABLE t2 (x, y)", revision=2)
    await seeds.release(replica, functions={"hello": 1}, schema=2)
    for node, changes in ((back, [(2, 2)]), (bare, []), (away, [(2, 2)])):
        assert [(each.number, each.revision) for each in (await node.sync()).schema_changes] == changes
        shown = await replica.node(seeds.name_of(replica, node))
        assert (shown["schema_version"], shown["standing"]) == (2, "at_target")
    assert (await replica.node("bare"))["older_revisions"] == [{"number": 2, "revision": 1, "newest": 2}]


async def test_a_rollout_is_undone_with_its_data(replica: Replica, made: list[bytes]) -> None:
    await base(replica)
    first, second = await joined(replica, "first"), await joined(replica, "second")
    for node in (first, second):
        await node.sync()
    had = first.inventory, first.generation
    lineage = await ship(replica, first, history(made))
    rollout = await open_rollout(replica, functions={"hello": 2}, schema_floor=2)
    await rollout.start(replica, [first])
    await goes(first, wire.BackupPosition(lineage, 3))
    undo = await ok(replica, "GET", "/v1/rollouts/default/2/undo")
    assert [(each["node"], each["position"]) for each in undo["nodes"]] == [("first", f"{lineage}/3")]
    assert (undo["above"], undo["left_nodes"]) == (1, [])
    reader = (await ok(replica, "POST", "/v1/operators", {"name": "ada", "role": "read"}))["token"]
    for method, path in (("GET", "undo"), ("POST", "rollback")):
        body = None if method == "GET" else {"data": True}
        answer = await replica.call(method, f"/v1/rollouts/default/2/{path}", body, token=reader)
        assert code(answer) == "role_insufficient"

    shown = await ok(replica, "POST", "/v1/rollouts/default/2/rollback", {"data": True, "reason": "wrong totals"})
    assert (shown["state"], shown["undo"]["release"], shown["undo"]["ordered"]) == ("rolled_back", 3, 1)
    assert (await second.poll()).status == 204
    await brought_back(first, had)
    assert (await first.poll()).status == 204
    shown = await ok(replica, "GET", "/v1/rollouts/default/2")
    assert (shown["undo"]["ordered"], shown["undo"]["done"]) == (0, 1)
    assert (await replica.node("first"))["standing"] == "at_target"
    assert code(await replica.call("GET", "/v1/rollouts/default/2/undo")) == "rollout_not_possible"
    rows = await items(replica, "/v1/audit?target=default/2")
    assert rows[0]["details"]["data"] is True


async def test_each_node_goes_to_before_the_first_release_that_is_undone(replica: Replica, made: list[bytes]) -> None:
    await base(replica)
    node, late = await joined(replica, "node"), await joined(replica, "late")
    for each in (node, late):
        await each.sync()
    files = history(made)
    lineage, other = await ship(replica, node, files), await ship(replica, late, files)
    await seeds.release(replica, functions={"hello": 2})
    await goes(node, wire.BackupPosition(lineage, 2))
    await goes(late, None)
    await seeds.release(replica, functions={"hello": 1})
    await goes(node, wire.BackupPosition(lineage, 4))
    await goes(late, wire.BackupPosition(other, 4))
    undo = (await plan(replica, rollback_to=1, data=True))["undo"]
    assert [(each["node"], each["position"], each["release"]) for each in undo["nodes"]] == [
        ("node", f"{lineage}/2", 2)
    ]
    assert [(each["node"], each["release"]) for each in undo["left_nodes"]] == [("late", 2)]
    undo = (await plan(replica, rollback_to=2, data=True))["undo"]
    assert [(each["node"], each["position"]) for each in undo["nodes"]] == [
        ("late", f"{other}/4"),
        ("node", f"{lineage}/4"),
    ]


async def test_what_was_undone_once_is_not_undone_again(replica: Replica, made: list[bytes]) -> None:
    await base(replica)
    node, failing = await joined(replica, "node"), await joined(replica, "failing")
    for each in (node, failing):
        await each.sync()
    had = node.inventory, node.generation
    files = history(made)
    lineage, other = await ship(replica, node, files), await ship(replica, failing, files)
    await seeds.release(replica, functions={"hello": 2})
    await goes(node, wire.BackupPosition(lineage, 2))
    await goes(failing, wire.BackupPosition(other, 2))
    await ok(replica, "POST", "/v1/releases", ROLLBACK)
    await brought_back(node, had)
    order = (await failing.poll()).json()["id"]
    result = wire.RestoreResult("failed", code="disk_full", message="no room for it")
    await replica.call("PUT", f"{SELF}/restores/{order}", result, token=failing.credential)
    assert await undo_of(replica, 3) == {"release": 3, "done": 1, "failed": 1}
    # It serves the functions of before with the data that it has.
    await failing.sync()
    undo = (await plan(replica, rollback_to=1, data=True))["undo"]
    assert [each["node"] for each in undo["nodes"]] == ["failing"]


async def test_who_can_not_go_back_now_is_named(replica: Replica, made: list[bytes]) -> None:
    await base(replica)
    names = ("busy", "gap", "going", "revoked")
    nodes = {name: await joined(replica, name) for name in names}
    for node in nodes.values():
        await node.sync()
    files = history(made)
    lineages = {name: await ship(replica, node, files) for name, node in nodes.items()}
    await seeds.release(replica, functions={"hello": 2})
    for name, node in nodes.items():
        if name != "going":
            await goes(node, wire.BackupPosition(lineages[name], COUNT + 3 if name == "gap" else 3))
    await nodes["going"].plan()
    await ok(replica, "POST", "/v1/nodes/busy/restores", {"to": "latest"})
    await ok(replica, "POST", "/v1/nodes/revoked/revoke")
    undo = (await plan(replica, **ROLLBACK))["undo"]
    assert undo["nodes"] == []
    left = {each["node"]: (each["code"], each["why"]) for each in undo["left_nodes"]}
    assert {name: found[0] for name, found in left.items()} == {
        "busy": "restore_not_possible",
        "gap": "backup_incomplete",
        "going": "restore_not_possible",
        "revoked": "restore_not_possible",
    }
    assert "skerry data resume busy" in left["busy"][1]
    assert f"{lineages['gap']}/{COUNT}" in left["gap"][1]
    assert "before:2" in left["going"][1]


async def test_the_command_shows_what_is_gone_and_asks(replica: Replica, made: list[bytes]) -> None:
    await base(replica)
    node, bare = await joined(replica, "node"), await joined(replica, "bare")
    for each in (node, bare):
        await each.sync()
    had = node.inventory, node.generation
    lineage = await ship(replica, node, history(made))
    await seeds.release(replica, functions={"hello": 2})
    await goes(node, wire.BackupPosition(lineage, 4))
    await goes(bare, None)
    shown = await said(replica, "rollback", "--data", "--plan")
    for text in (
        "data go back on 1 node",
        "node: to before release 2",
        "table orders: 12 rows, now 18",
        "= bare: it wa",
    ):
        assert text in shown, shown
    asked = await programs.skerry(replica, "rollback", "--data")
    assert asked.status != 0
    assert "and the data of 1 node?" in asked.err
    assert (await ok(replica, "GET", "/v1/releases?limit=1"))["items"][0]["number"] == 2
    await said(replica, "rollback", "--data", "--yes")
    assert "1 on the way, 1 can't" in await said(replica, "release", "show", "3")
    await brought_back(node, had)
    assert "1 done, 1 can't" in await said(replica, "release", "show", "3")

    rollout = await open_rollout(replica, functions={"hello": 2}, schema_floor=1)
    await rollout.start(replica, [node])
    again = await ship(replica, node, history(made))
    await goes(node, wire.BackupPosition(again, 2))
    assert "node: to before release 4" in await said(replica, "rollout", "rollback", "--data", "--plan")
    await said(replica, "rollout", "rollback", "--data", "--yes")
    assert "1 on the way (back with release 5)" in await said(replica, "rollout", "status")


async def said(replica: Replica, *arguments: str) -> str:
    done = await programs.skerry(replica, *arguments)
    assert done.status == 0, done
    return done.out.decode()


async def test_data_go_back_with_a_rollback_alone(replica: Replica, made: list[bytes]) -> None:
    await base(replica)
    node = await joined(replica, "node")
    await node.sync()
    lineage = await ship(replica, node, history(made))
    await seeds.release(replica, functions={"hello": 2})
    await goes(node, wire.BackupPosition(lineage, 3))
    for wrong in ({"functions": {"hello": 1}}, {"rollback_to": 1, "rollout": {"steps": ["1", "100%"]}}):
        assert code(await replica.call("POST", "/v1/releases", {**wrong, "data": True})) == "invalid_body"
    pusher = (await ok(replica, "POST", "/v1/operators", {"name": "ada", "role": "push"}))["token"]
    assert code(await replica.call("POST", "/v1/releases", ROLLBACK, token=pusher)) == "role_insufficient"
    shown = (await plan(replica, **ROLLBACK))["plan_digest"]
    await ok(replica, "POST", "/v1/nodes/node/restores", {"to": "latest"})
    answer = await replica.call("POST", "/v1/releases", {**ROLLBACK, "plan_digest": shown})
    assert code(answer) == "plan_changed"
    without = await plan(replica, rollback=True)
    assert without["undo"] is None
