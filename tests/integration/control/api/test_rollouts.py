"""Releases that go out in steps: how they are made, what is shown of their rollouts, and what operators do to them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from control.api import rollouts
from control.protocol import wire
from control.rollouts import store
from control.storage import queries
from control.storage.announcements import Changed
from tests.support import deploy, seeds
from tests.support.deploy import code, items, ok
from tests.support.replica import Answered, Replica, Site, TestNode
from tests.support.rollouts import OpenRollout

POLICY = {"steps": ["1", "50%", {"pause": "approval", "role": "admin"}, "100%"], "bake": "0s"}
HOUR = {"steps": ["100%"], "bake": "1h"}
STEPS = ["1", "50%", "pause approval", "100%"]
TABLE = "CREATE TABLE notes (id INTEGER PRIMARY KEY)"


async def first(replica: Replica, *names: str) -> list[TestNode]:
    """Nodes that run the group's first release; the function has three versions."""
    nodes = [await replica.join(name) for name in names]
    for _ in range(3):
        await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    for node in nodes:
        await node.sync()
    return nodes


async def made(replica: Replica, **body: Any) -> Any:
    """A release, in the way that the request and the group say."""
    return await ok(replica, "POST", "/v1/releases", body)


async def refused(replica: Replica, path: str = "/v1/releases", token: str | None = None, **body: Any) -> str:
    answer = await replica.call("POST", path, body, token=token)
    assert answer.status in (403, 404, 409, 422), answer
    return code(answer)


async def own(replica: Replica, group: str = "default") -> int:
    """The number of the group's own release."""
    found = [g for g in await items(replica, "/v1/groups") if g["name"] == group]
    return int(found[0]["release"]["number"])


async def shown(replica: Replica, number: int, group: str = "default") -> Any:
    return await ok(replica, "GET", f"/v1/rollouts/{group}/{number}")


async def act(replica: Replica, number: int, deed: str, token: str | None = None, **body: Any) -> Any:
    return await ok(replica, "POST", f"/v1/rollouts/default/{number}/{deed}", body, token=token)


async def rollout(replica: Replica, number: int, group: str = "default") -> OpenRollout:
    """What starts nodes of a rollout, as the runner does."""

    async def read(conn: Any) -> OpenRollout:
        stored = await store.by_number(conn, group, number)
        assert stored is not None
        return OpenRollout(str(stored.row.release_id), number, str(stored.row.group_id))

    return await replica.services.db.read(read)


async def operator(replica: Replica, name: str, role: str, group: str = "default") -> str:
    grants = [{"role": role, "group": group, "functions": None}]
    return str((await ok(replica, "POST", "/v1/operators", {"name": name, "grants": grants}))["token"])


async def outcomes(replica: Replica, number: int, query: str = "") -> dict[str, str]:
    """By node."""
    found = await items(replica, f"/v1/rollouts/default/{number}/nodes{query}")
    return {node["name"]: node["outcome"] for node in found}


async def audited(replica: Replica, action: str) -> list[Any]:
    return (await ok(replica, "GET", f"/v1/audit?action={action}"))["items"]  # type: ignore[no-any-return]


async def fail(node: TestNode) -> None:
    plan = await node.plan()
    await node.report(plan.sync_id, "failed", error=wire.SyncError("probe_failed", "no such greeting"))


async def test_a_release_with_a_rollout_leaves_the_groups_target(control_site: Site) -> None:
    async with control_site.running() as replica:
        node, *_ = await first(replica, "a", "b")
        body: dict[str, Any] = {"functions": {"hello": 2}, "rollout": POLICY}
        planned = await ok(replica, "POST", "/v1/releases?plan=true", body)
        assert planned["rollout"] == {"state": "running", "rehearse": True, "rehearsal_only": False, "steps": STEPS}
        assert await items(replica, "/v1/rollouts") == []
        release = await made(replica, **body, plan_digest=planned["plan_digest"])
        assert (release["number"], release["rollout"]) == (2, planned["rollout"])
        assert await own(replica) == 1
        assert (await node.poll()).status == 204
        listed = await items(replica, "/v1/releases")
        assert [(r["number"], r["rollout"] and r["rollout"]["state"]) for r in listed] == [(2, "running"), (1, None)]
        assert (await ok(replica, "GET", "/v1/releases/default/2"))["rollout"] == release["rollout"]
        [found] = await items(replica, "/v1/rollouts")
        assert (found["group"], found["number"], found["state"], found["step"]) == ("default", 2, "running", 0)
        assert (found["steps"], found["waits_for"], found["started"], found["nodes"]) == (4, "rehearsal", 0, 2)
        [row] = [r for r in await audited(replica, "release.create") if r["target"] == "default/2"]
        assert row["details"]["rollout"] == POLICY
        # How it goes out is a part of what was shown.
        other = {**body, "rollout": {**POLICY, "rehearse": False}}
        planned = await ok(replica, "POST", "/v1/releases?plan=true", other)
        assert (planned["rollout"]["rehearse"], planned["changes"]["change"]) == (False, [])
        assert await refused(replica, **body, plan_digest=planned["plan_digest"]) == "plan_changed"


async def test_a_policy_that_means_nothing_is_refused_before_anything_is_written(control_site: Site) -> None:
    async with control_site.running() as replica:
        await first(replica, "a")
        for policy, field in (
            ({"steps": ["5%"]}, "steps[0]"),
            ({"steps": [{"until": "x"}, "100%"]}, "steps[0].until"),
            ({"bake": "soon"}, "bake"),
            ({"window": "Mon-Fri 22:00-05:00 Nowhere/None"}, "window"),
            ({"gate": [{"metric": "p99"}]}, "gate[0].at_most"),
        ):
            answer = await replica.call("POST", "/v1/releases", {"functions": {"hello": 2}, "rollout": policy})
            assert (answer.status, code(answer), answer.json()["field"]) == (422, "invalid_policy", f"rollout.{field}")
            answer = await replica.call("PUT", "/v1/groups/default/policy", policy)
            assert (answer.status, code(answer), answer.json()["field"]) == (422, "invalid_policy", field)
        assert len(await items(replica, "/v1/releases")) == 1
        assert (await items(replica, "/v1/groups"))[0]["policy"] is None
        assert await refused(replica, now=True, rollout={}) == "invalid_body"
        assert await refused(replica, now=True, rehearsal_only=True) == "invalid_body"


async def test_the_groups_policy(control_site: Site) -> None:
    async with control_site.running() as replica:
        await first(replica, "a")
        assert await ok(replica, "PUT", "/v1/groups/default/policy", POLICY) == POLICY
        assert (await items(replica, "/v1/groups"))[0]["policy"] == POLICY
        assert (await made(replica, functions={"hello": 2}))["rollout"]["steps"] == STEPS
        # A group without nodes has nothing to go out to in steps.
        await ok(replica, "POST", "/v1/groups", {"name": "empty"})
        await ok(replica, "PUT", "/v1/groups/empty/policy", POLICY)
        assert (await made(replica, group="empty", functions={"hello": 2}))["rollout"] is None
        assert await own(replica, "empty") == 1
        # Its open rollout goes on by what it began with.
        await ok(replica, "PUT", "/v1/groups/default/policy", HOUR)
        assert (await shown(replica, 2))["policy"] == POLICY
        assert (await replica.call("DELETE", "/v1/groups/default/policy")).status == 204
        assert (await items(replica, "/v1/groups"))[0]["policy"] is None
        rows = [(r["target"], r["before"], r["after"]) for r in await audited(replica, "group.policy")]
        assert ("default", {"policy": POLICY}, {"policy": HOUR}) in rows
        assert ("default", {"policy": HOUR}, {"policy": None}) in rows
        answer = await replica.call("PUT", "/v1/groups/nowhere/policy", POLICY)
        assert (answer.status, code(answer)) == (404, "unknown_group")


async def test_now_leaves_a_policy_out_and_the_audit_log_says_so(control_site: Site) -> None:
    async with control_site.running() as replica:
        [node] = await first(replica, "a")
        await made(replica, functions={"hello": 2}, now=True)
        await ok(replica, "PUT", "/v1/groups/default/policy", POLICY)
        await made(replica, functions={"hello": 3})
        release = await made(replica, functions={"hello": 2}, now=True)
        assert (release["rollout"], release["number"], await own(replica)) == (None, 4, 4)
        assert (await shown(replica, 3))["state"] == "superseded"
        assert (await node.sync()).release_number == 4
        said = {r["target"]: r["details"].get("now") for r in await audited(replica, "release.create")}
        # There was nothing to leave out the first time.
        assert said == {"default/1": None, "default/2": None, "default/3": None, "default/4": True}


async def test_only_deploy_goes_another_way_than_the_policy_says(control_site: Site) -> None:
    async with control_site.running() as replica:
        await first(replica, "a")
        push = await operator(replica, "ci", "push")
        body = {"group": "default", "functions": {"hello": 2}}
        # Without a policy it may do both.
        assert (await ok(replica, "POST", "/v1/releases", {**body, "now": True}, token=push))["rollout"] is None
        release = await ok(replica, "POST", "/v1/releases", {**body, "rollout": POLICY}, token=push)
        assert release["rollout"]["steps"] == STEPS
        await act(replica, 3, "abort")
        await ok(replica, "PUT", "/v1/groups/default/policy", POLICY)
        for more in ({"now": True}, {"rollout": {"rehearse": False}}):
            answer = await replica.call("POST", "/v1/releases", {**body, **more}, token=push)
            assert (answer.status, code(answer)) == (403, "role_insufficient")
            assert "in another way than" in answer.json()["detail"]
        assert (await ok(replica, "POST", "/v1/releases", body, token=push))["rollout"]["steps"] == STEPS
        for method, path in (("PUT", "/v1/groups/default/policy"), ("DELETE", "/v1/groups/default/policy")):
            answer = await replica.call(method, path, POLICY if method == "PUT" else None, token=push)
            assert (answer.status, code(answer)) == (403, "role_insufficient")


async def test_a_release_without_a_policy_that_raises_the_floor_is_rehearsed(control_site: Site) -> None:
    async with control_site.running() as replica:
        await first(replica, "a")
        assert (await made(replica, functions={"hello": 2}))["rollout"] is None
        change = {"name": "notes", "sql": TABLE, "release": {"group": "default"}}
        following = (await ok(replica, "POST", "/v1/schema-changes", change))["release"]
        whole = {"state": "running", "rehearse": True, "rehearsal_only": False, "steps": ["100%"]}
        assert (following["rollout"], following["schema_floor"], await own(replica)) == (whole, 1, 2)
        # What supersedes it has its changes too, and so is rehearsed.
        release = await made(replica, functions={"hello": 3})
        assert (release["rollout"], release["floor_before"], release["schema_floor"]) == (whole, 1, 1)
        assert (await shown(replica, 3))["state"] == "superseded"
        amended = {"sql": f"{TABLE};", "release": {"group": "default"}}
        made_again = (await ok(replica, "POST", "/v1/schema-changes/1/revisions", amended))["release"]
        assert made_again["rollout"] == whole
        release = await made(replica, now=True)
        assert (release["rollout"], await own(replica)) == (None, 6)
        [row] = [r for r in await audited(replica, "release.create") if r["target"] == "default/6"]
        assert row["details"]["now"] is True
        # The floor is the group's now.
        assert (await made(replica, functions={"hello": 2}))["rollout"] is None


async def test_the_next_release_builds_on_the_open_rollouts(control_site: Site) -> None:
    async with control_site.running() as replica:
        await first(replica, "a")
        await seeds.function(replica, "other")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        release = await made(replica, functions={"other": 1})
        # It goes out in the steps of the one that it supersedes, whose change it brings too.
        assert ([f["name"] for f in release["changes"]["add"]], release["changes"]["change"]) == (["other"], [])
        assert {f["name"]: f["version"] for f in release["functions"]} == {"hello": 2, "other": 1}
        assert release["rollout"]["steps"] == STEPS
        states = [(r["state"], r["newest"]) for r in await items(replica, "/v1/rollouts")]
        assert states == [("running", 3), ("superseded", 3)]
        assert (await ok(replica, "GET", "/v1/releases/default/3"))["changes"] == release["changes"]
        # After an abort, it is the group's again.
        await act(replica, 3, "abort")
        release = await made(replica, functions={"other": 1})
        assert {f["name"]: f["version"] for f in release["functions"]} == {"hello": 1, "other": 1}
        assert (release["rollout"], await own(replica)) == (None, 4)
        assert (await ok(replica, "GET", "/v1/releases/default/4"))["changes"] == release["changes"]


async def test_a_release_that_is_only_rehearsed(control_site: Site) -> None:
    async with control_site.running() as replica:
        await first(replica, "a")
        body = {"functions": {"hello": 2}, "rehearsal_only": True}
        release = await made(replica, **body)
        assert release["rollout"] == {"state": "running", "rehearse": True, "rehearsal_only": True, "steps": ["100%"]}
        listed = (await items(replica, "/v1/releases"))[0]
        assert listed["rollout"] == release["rollout"]
        answer = await replica.call("POST", "/v1/releases", body)
        assert (answer.status, code(answer), answer.json()["field"]) == (409, "rollout_open", "rehearsal_only")
        assert "release 2" in answer.json()["detail"]
        # Nobody has wanted it to go out, so the next one doesn't have it.
        assert (await ok(replica, "GET", "/v1/releases/default/1"))["rolls_back_to"] is None
        release = await made(replica, functions={"hello": 3})
        assert release["changes"]["change"] == [{"name": "hello", "from": 1, "to": 3}]
        assert (await ok(replica, "GET", "/v1/releases/default/3"))["changes"] == release["changes"]
        assert [r["state"] for r in await items(replica, "/v1/rollouts")] == ["superseded"]
        await ok(replica, "POST", "/v1/groups", {"name": "empty"})
        assert await refused(replica, group="empty", rehearsal_only=True) == "release_not_possible"


async def test_a_rehearsed_floor_that_no_node_got_was_never_lowered(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b")
        await deploy.schema(replica, TABLE)
        await made(replica, functions={"hello": 2}, rehearsal_only=True)
        await act(replica, 2, "abort")
        planned = await ok(replica, "POST", "/v1/releases?plan=true", {"functions": {"hello": 3}})
        assert (planned["floor_before"], planned["schema_floor"], planned["held_below"]) == (0, 1, None)
        # Once a node has had it, an abort holds it as a rollback does.
        await made(replica, functions={"hello": 2})
        await (await rollout(replica, 3)).start(replica, nodes[:1])
        await nodes[0].sync()
        await act(replica, 3, "abort")
        planned = await ok(replica, "POST", "/v1/releases?plan=true", {"functions": {"hello": 3}})
        assert (planned["floor_before"], planned["schema_floor"], planned["held_below"]) == (0, 0, 1)


async def test_a_rollback_during_a_rollout_goes_back_to_the_groups_release(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b", "c")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        started = await rollout(replica, 2)
        await started.start(replica, nodes[:1])
        await nodes[0].sync()
        assert (await ok(replica, "GET", "/v1/releases/default/2"))["rolls_back_to"] == 1
        assert (await ok(replica, "GET", "/v1/releases/default/1"))["rolls_back_to"] is None
        planned = await ok(replica, "POST", "/v1/releases?plan=true", {"rollback": True})
        assert (planned["rollback_to"], planned["rollout"]) == (1, None)
        assert planned["changes"]["change"] == [{"name": "hello", "from": 2, "to": 1}]
        release = await made(replica, rollback=True, plan_digest=planned["plan_digest"])
        assert (release["number"], release["rollback_to"], await own(replica)) == (3, 1, 3)
        plan = await nodes[0].sync()
        assert (plan.release_number, plan.functions[0].version) == (3, 1)
        # The others run the same already.
        assert [(await node.poll()).headers["x-skerry-release"] for node in nodes[1:]] == ["default 3 4"] * 2
        found = await shown(replica, 2)
        assert (found["state"], found["reason"]) == ("rolled_back", "release 3 goes back to release 1")
        # What a rollout was stopped at is no release that a rollback goes to, although a node has run it.
        await seeds.release(replica, functions={"hello": 3})
        await nodes[0].sync()
        assert (await made(replica, rollback=True))["rollback_to"] == 3
        # And if somebody wants it after all, it goes out as any other: in steps.
        await ok(replica, "PUT", "/v1/groups/default/policy", POLICY)
        assert (await made(replica, rollback_to=2))["rollout"]["steps"] == STEPS
        assert (await made(replica, rollback_to=1))["rollout"] is None


async def test_a_rollback_goes_out_in_steps_if_it_is_given_a_policy(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        await (await rollout(replica, 2)).start(replica, nodes[:1])
        await nodes[0].sync()
        body = {"rollback": True, "rollout": {**POLICY, "rehearse": False}}
        planned = await ok(replica, "POST", "/v1/releases?plan=true", body)
        assert (planned["rollback_to"], planned["rollout"]["steps"]) == (1, STEPS)
        release = await made(replica, **body, plan_digest=planned["plan_digest"])
        assert (release["rollback_to"], release["rollout"]["state"], await own(replica)) == (1, "running", 1)
        assert (await shown(replica, 2))["state"] == "superseded"
        # A node runs the other release until a step starts it.
        assert (await nodes[0].poll()).status == 204
        await (await rollout(replica, 3)).start(replica, nodes[:1])
        assert (await nodes[0].sync()).functions[0].version == 1


async def test_what_is_shown_of_nodes_steps_and_gates(control_site: Site) -> None:
    async with control_site.running() as replica:
        names = ["at", "fails", "gone", "late", "offline", "waits"]
        at, fails, gone, late, offline, _ = await first(replica, *names)
        gate = {"metric": "error_ratio", "function": "hello", "than_before": "1.2x", "at_least_calls": 200}
        webhook = {"webhook": "https://checks.example/ready"}
        await made(replica, functions={"hello": 2}, rollout={**POLICY, "gate": [gate, webhook]})
        started = await rollout(replica, 2)
        await started.start(replica, [at, gone], 1)
        await started.at(replica, step=2)
        await started.start(replica, [fails, late, offline], 2)
        await at.sync()
        await gone.sync()
        await ok(replica, "POST", "/v1/groups", {"name": "other"})
        await ok(replica, "POST", "/v1/nodes/gone/move", {"group": "other"})
        await fail(fails)

        async def goes_offline(conn: Any) -> None:
            await conn.execute("UPDATE nodes SET state = 'offline' WHERE name = 'offline'")

        await replica.services.db.transaction(goes_offline)
        found = await items(replica, "/v1/rollouts/default/2/nodes")
        assert [(n["name"], n["outcome"], n["step"]) for n in found] == [
            ("at", "at_target", 1),
            ("fails", "failed", 2),
            ("gone", "left", 1),
            ("late", "syncing", 2),
            ("offline", "offline", 2),
            ("waits", "waiting", None),
        ]
        assert (found[1]["error_code"], found[1]["error_message"]) == ("probe_failed", "no such greeting")
        assert found[0]["reached_at"] >= found[0]["started_at"]
        assert found[5]["started_at"] is found[3]["reached_at"] is None
        [only] = await items(replica, "/v1/rollouts/default/2/nodes?outcome=failed")
        assert only == found[1]
        page = await ok(replica, "GET", "/v1/rollouts/default/2/nodes?limit=4")
        rest = await ok(replica, "GET", f"/v1/rollouts/default/2/nodes?cursor={page['next']}")
        assert page["items"] + rest["items"] == found
        whole = await shown(replica, 2)
        one = {"at_target": 1, "syncing": 1, "failed": 1, "offline": 1, "waiting": 1, "left": 1}
        one |= {"held": 0, "superseded": 0}
        assert (whole["counts"], whole["started"], whole["nodes"]) == (one, 5, 5)
        none = dict.fromkeys(one, 0)
        assert [(s["number"], s["text"], s["state"]) for s in whole["plan"]] == [
            (1, "1", "passed"),
            (2, "50%", "now"),
            (3, "pause approval", "not_begun"),
            (4, "100%", "not_begun"),
        ]
        assert whole["plan"][0]["nodes"] == {**none, "at_target": 1, "left": 1}
        assert whole["plan"][1]["nodes"] == {**none, "failed": 1, "syncing": 1, "offline": 1}
        shown_gate, asked = whole["plan"][1]["gates"]
        assert (asked["gate"], asked["at_least_calls"]) == ("webhook at checks.example", 0)
        assert (shown_gate["gate"], shown_gate["outcome"]) == (
            "error_ratio of hello at most 1.2x of before",
            "unknown",
        )

        async def measured(conn: Any) -> None:
            now = replica.services.clock.now()
            values = (2, 0, "failed", 0.5, 0.12, 0.1, 300, "too many", now, now)
            await conn.execute(queries.load("gates")["save"], started.id, *values)
            answered = (2, 1, "passed", None, None, None, 300, "it answered 200", now, now)
            await conn.execute(queries.load("gates")["save"], started.id, *answered)

        await replica.services.db.transaction(measured)
        shown_gate, asked = (await shown(replica, 2))["plan"][1]["gates"]
        assert (asked["outcome"], asked["calls"], asked["at_least_calls"]) == ("passed", 300, 0)
        values = [shown_gate[name] for name in ("outcome", "measured", "allowed", "before", "calls", "at_least_calls")]
        assert (values, shown_gate["why"]) == (["failed", 0.5, 0.12, 0.1, 300, 200], "too many")


async def test_what_nodes_have_found_in_their_rehearsal(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "bad", "good", "off", "old", "silent")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        started = await rollout(replica, 2)

        async def tell(conn: Any) -> None:
            await conn.execute("UPDATE nodes SET protocol = 3 WHERE name <> 'old'")
            await conn.execute("UPDATE nodes SET state = 'offline' WHERE name = 'off'")
            stored = await store.by_number(conn, "default", 2)
            assert stored is not None
            now = replica.services.clock.now()
            changes = [wire.RehearsedChange(1, "notes", 12, 0.5, 0.1)]
            bad = wire.RehearsalResult("failed", "schema_change_failed", "not unique", "notes id=7", changes)
            good = wire.RehearsalResult("passed", changes=changes, schema_digest="ab", seconds=1.5, database=4096)
            ids = {name: node.id for name, node in zip(("bad", "good"), nodes, strict=False)}
            for name, result in (("bad", bad), ("good", good)):
                await store.tell_rehearsal(conn, stored, ids[name], result, now)  # type: ignore[arg-type]

        await replica.services.db.transaction(tell)
        where = "/v1/rollouts/default/2/rehearsal"
        found = await items(replica, where)
        assert [(n["name"], n["outcome"], n["code"]) for n in found] == [
            ("bad", "failed", "schema_change_failed"),
            ("off", "unknown", "offline"),
            ("old", "unknown", "too_old"),
            ("silent", "unknown", "pending"),
            ("good", "passed", ""),
        ]
        assert (found[0]["row"], found[0]["message"]) == ("notes id=7", "not unique")
        assert found[4]["changes"] == [{"number": 1, "name": "notes", "rows": 12, "seconds": 0.5, "stall": 0.1}]
        assert (found[4]["seconds"], found[4]["database"], found[4]["schema_digest"]) == (1.5, 4096, "ab")
        assert found[1]["told_at"] is None
        assert (await shown(replica, 2))["rehearsal"] == {"passed": 1, "failed": 1, "unknown": 2, "pending": 1}
        assert [n["name"] for n in await items(replica, f"{where}?outcome=unknown")] == ["off", "old", "silent"]
        page = await ok(replica, "GET", f"{where}?limit=3")
        rest = await ok(replica, "GET", f"{where}?cursor={page['next']}")
        assert page["items"] + rest["items"] == found
        # When it is over, the one that never said anything is unknown for good.
        await started.at(replica, step=1)
        found = await items(replica, f"{where}?outcome=unknown")
        assert [(n["name"], n["code"]) for n in found] == [
            ("off", "offline"),
            ("old", "too_old"),
            ("silent", "no_answer"),
        ]
        assert (await shown(replica, 2))["rehearsal"] == {"passed": 1, "failed": 1, "unknown": 3, "pending": 0}
        # The next attempt knows nothing yet.
        await started.at(replica, step=0, attempt=2)
        assert (await shown(replica, 2))["rehearsal"] == {"passed": 0, "failed": 0, "unknown": 2, "pending": 3}


async def test_what_operators_do(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b")
        policy = {**POLICY, "rehearse": False}
        await made(replica, functions={"hello": 2}, rollout=policy)
        assert (await shown(replica, 2))["rehearsal"] is None
        paused = await act(replica, 2, "pause", reason="lunch")
        assert (paused["state"], paused["waits_for"], paused["reason"]) == ("paused", "operator", "lunch")
        where = "/v1/rollouts/default/2"
        assert await refused(replica, f"{where}/pause") == "rollout_not_possible"
        assert (await act(replica, 2, "resume"))["state"] == "running"
        # Of two who have seen step 1, only one leaves it out.
        both = await asyncio.gather(*(replica.call("POST", f"{where}/promote", {"step": 1}) for _ in range(2)))
        assert sorted(answer.status for answer in both) == [200, 409]
        late = next(answer for answer in both if answer.status == 409)
        assert "at step 2 by now" in late.json()["detail"]
        assert (await shown(replica, 2))["step"] == 2
        await (await rollout(replica, 2)).start(replica, nodes, 2)
        await nodes[0].sync()
        aborted = await act(replica, 2, "abort", reason="no")
        assert (aborted["state"], aborted["reason"], aborted["newest"]) == ("aborted", "no", 2)
        assert aborted["ended_at"] is not None
        # One runs it and keeps it, and the other goes back.
        assert (aborted["counts"]["at_target"], aborted["counts"]["waiting"]) == (1, 1)
        for deed in ("pause", "resume", "promote", "abort"):
            assert await refused(replica, f"{where}/{deed}") == "rollout_not_possible"
        again = await act(replica, 2, "retry")
        assert (again["state"], again["attempt"], again["step"], again["ended_at"]) == ("running", 2, 1, None)
        assert await refused(replica, f"{where}/retry") == "rollout_not_possible"
        rows = await audited(replica, "rollout.abort")
        assert [(r["target"], r["details"]["reason"]) for r in rows] == [("default/2", "no")]
        assert (rows[0]["before"]["state"], rows[0]["after"]["state"]) == ("running", "aborted")
        for deed in ("pause", "resume", "promote", "retry"):
            assert len(await audited(replica, f"rollout.{deed}")) == 1  # A refused one leaves no row.
        assert (await act(replica, 2, "promote", all=True))["step"] == 4
        done = await act(replica, 2, "promote")
        assert (done["state"], await own(replica)) == ("done", 2)
        answer = await replica.call("POST", f"{where}/abort", {})
        assert (answer.status, code(answer)) == (409, "rollout_not_possible")
        assert "is done: it has ended already" in answer.json()["detail"]
        assert await refused(replica, f"{where}/rollback") == "rollout_not_possible"
        for path, expected in (("default/9", "unknown_rollout"), ("default/1", "unknown_rollout")):
            assert await refused(replica, f"/v1/rollouts/{path}/pause") == expected
            assert code(await replica.call("GET", f"/v1/rollouts/{path}")) == expected
        assert await refused(replica, "/v1/rollouts/nowhere/1/pause") == "unknown_group"


@pytest.mark.parametrize("aborted", [False, True])
async def test_a_rollout_is_rolled_back(control_site: Site, aborted: bool) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        await (await rollout(replica, 2)).start(replica, nodes[:1])
        await nodes[0].sync()
        if aborted:
            await act(replica, 2, "abort")
        found = await act(replica, 2, "rollback", reason="too slow")
        assert found["state"] == "rolled_back"
        assert "release 3 goes back to release 1" in found["reason"]
        assert (found["counts"]["superseded"], found["counts"]["at_target"], found["counts"]["waiting"]) == (1, 0, 1)
        assert found["plan"][0]["nodes"]["superseded"] == 1
        assert await outcomes(replica, 2) == {"a": "superseded", "b": "waiting"}
        assert await outcomes(replica, 2, "?outcome=superseded") == {"a": "superseded"}
        assert await own(replica) == 3
        release = await ok(replica, "GET", "/v1/releases/default/3")
        assert (release["rollback_to"], release["reason"], release["created_by"]) == (1, "too slow", "admin")
        assert (await nodes[0].sync()).functions[0].version == 1
        assert (await nodes[1].poll()).headers["x-skerry-release"].startswith("default 3 ")
        assert await refused(replica, "/v1/rollouts/default/2/rollback") == "rollout_not_possible"
        [row] = await audited(replica, "rollout.rollback")
        assert row["after"]["state"] == "rolled_back"
        assert (await audited(replica, "release.create"))[0]["target"] == "default/3"


async def test_a_newer_release_supersedes_the_one_of_a_rollout_on_its_nodes(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b", "c")
        await made(replica, functions={"hello": 2}, rollout={**POLICY, "rehearse": False})
        await (await rollout(replica, 2)).start(replica, nodes[:2])
        await nodes[0].sync()
        await act(replica, 2, "abort")
        assert await outcomes(replica, 2) == {"a": "at_target", "b": "waiting", "c": "waiting"}
        await made(replica, functions={"hello": 3}, rollout={**POLICY, "rehearse": False})
        assert (await outcomes(replica, 2))["a"] == "at_target"
        await (await rollout(replica, 3)).start(replica, nodes)
        assert await outcomes(replica, 2) == {"a": "superseded", "b": "waiting", "c": "waiting"}
        for _ in range(2):
            await act(replica, 3, "promote", all=True)
        assert (await shown(replica, 3))["state"] == "done"
        assert set((await outcomes(replica, 3)).values()) == {"syncing"}
        await made(replica, functions={"hello": 1}, now=True)
        assert set((await outcomes(replica, 3)).values()) == {"superseded"}


async def test_there_may_be_nothing_to_roll_back_to(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.join("a")
        await seeds.function(replica, "hello")
        await made(replica, functions={"hello": 1}, rollout=POLICY)

        async def why(path: str, **body: Any) -> str:
            answer = await replica.call("POST", path, body)
            assert answer.status == 409, answer
            return str(answer.json()["detail"])

        stops = "`skerry rollout abort default` stops"
        for number in (1, 2):
            assert stops in await why(f"/v1/rollouts/default/{number}/rollback")
            assert stops in await why("/v1/releases", rollback=True)
            if number == 1:
                # A newer one takes its place before any node has it: there is still nothing to go back to.
                await seeds.function(replica, "hello")
                await made(replica, functions={"hello": 2})
                assert stops in await why("/v1/rollouts/default/1/rollback")
        assert (await act(replica, 2, "abort"))["state"] == "aborted"
        assert "`skerry rollout retry default` begins again" in await why("/v1/rollouts/default/2/rollback")
        # Once the group has one, what took a rollout's place is what can go back.
        await made(replica, functions={"hello": 1}, now=True)
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        await made(replica, functions={"hello": 1})
        said = await why("/v1/rollouts/default/4/rollback")
        assert "release 5 is open: `skerry rollout rollback default` rolls that one back" in said
        await act(replica, 5, "rollback")
        assert "`skerry rollback default` goes back from release 6" in await why("/v1/rollouts/default/4/rollback")


async def test_the_runner_rolls_back_in_the_name_of_control(control_site: Site) -> None:

    async with control_site.running() as replica:
        await first(replica, "a")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        roll_back = rollouts.roll_back(replica.services.clock)

        async def work(conn: Any) -> None:
            changed = Changed()
            stored = await store.by_number(conn, "default", 2)
            assert stored is not None
            await roll_back(conn, changed, stored, "gate 1 failed")
            await changed.announce(conn)

        await replica.services.db.transaction(work)
        found = await shown(replica, 2)
        assert (found["state"], found["reason"]) == ("rolled_back", "gate 1 failed: release 3 goes back to release 1")
        rows = (await ok(replica, "GET", "/v1/audit"))["items"]
        mine = {r["action"]: r["target"] for r in rows if (r["actor_kind"], r["actor"]) == ("control", "rollouts")}
        assert mine == {"release.create": "default/3", "rollout.rollback": "default/2"}


async def test_an_approval_needs_its_role(control_site: Site) -> None:
    async with control_site.running() as replica:
        await first(replica, "a")
        steps = [{"pause": "approval", "role": "push"}, {"pause": "approval", "role": "admin"}, "100%"]
        await made(replica, functions={"hello": 2}, rollout={"steps": steps, "rehearse": False})
        tokens = {role: await operator(replica, f"one-{role}", role) for role in ("read", "push", "deploy", "admin")}
        started = await rollout(replica, 2)
        where = "/v1/rollouts/default/2/promote"

        async def waits(step: int, waits_for: str) -> None:
            text = "UPDATE rollouts SET step = $2, waits_for = $3 WHERE release_id = $1::text::uuid"
            await replica.services.db.transaction(lambda conn: conn.execute(text, started.id, step, waits_for))

        async def may(**body: Any) -> list[str]:
            """Who may promote it as it stands, asked from below."""
            found = []
            for role, token in tokens.items():
                answer: Answered = await replica.call("POST", where, body, token=token)
                found += [role] if answer.status == 200 else []
                if found:
                    break
            return found

        await waits(1, "")  # Not only an approval: the rest of a step is left out.
        assert await may() == ["deploy"]
        await waits(1, "approval")
        assert await may() == ["push"]
        assert (await shown(replica, 2))["step"] == 2
        await waits(2, "approval")
        assert await may() == ["admin"]
        await waits(1, "approval")
        assert await may(all=True) == ["admin"]


async def test_operators_see_their_groups(control_site: Site) -> None:
    async with control_site.running() as replica:
        await ok(replica, "POST", "/v1/groups", {"name": "other"})
        await first(replica, "a")
        await replica.join("b", "other")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        await made(replica, group="other", functions={"hello": 2}, rollout=POLICY)
        mine = await operator(replica, "mine", "deploy", "other")

        async def seen(query: str = "") -> list[str]:
            answer = await ok(replica, "GET", f"/v1/rollouts{query}", token=mine)
            return [r["group"] for r in answer["items"]]

        assert (await seen(), await seen("?group=other")) == (["other"], ["other"])
        for method, path in (
            ("GET", "/v1/rollouts?group=default"),
            ("GET", "/v1/rollouts/default/2"),
            ("GET", "/v1/rollouts/default/2/nodes"),
            ("GET", "/v1/rollouts/default/2/rehearsal"),
            ("POST", "/v1/rollouts/default/2/abort"),
        ):
            answer = await replica.call(method, path, {} if method == "POST" else None, token=mine)
            assert (answer.status, code(answer)) == (404, "unknown_group"), path
        # Newest first, page by page; ended ones can be left out.
        page = await ok(replica, "GET", "/v1/rollouts?limit=1")
        rest = await ok(replica, "GET", f"/v1/rollouts?cursor={page['next']}")
        assert [r["group"] for r in page["items"] + rest["items"]] == ["other", "default"]
        await ok(replica, "POST", "/v1/rollouts/other/1/abort", {}, token=mine)
        assert [r["group"] for r in await items(replica, "/v1/rollouts?open=true")] == ["default"]


async def test_a_version_that_a_rollout_brings_cant_be_deleted(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b")
        await made(replica, functions={"hello": 2}, rollout=POLICY)

        async def deleted(path: str) -> str:
            answer = await replica.call("DELETE", f"/v1/functions/hello{path}")
            return "" if answer.status == 204 else code(answer)

        assert await deleted("/versions/2") == "version_in_target"
        assert await deleted("/versions/1?release=true") == "rollout_open"
        await (await rollout(replica, 2)).start(replica, nodes[:1])
        await nodes[0].sync()
        await act(replica, 2, "abort")
        assert await deleted("/versions/2") == "version_in_target"  # A node runs it.
        await act(replica, 2, "rollback")
        assert await deleted("/versions/2") == ""
        # What was deleted can't go out again.
        await made(replica, functions={"hello": 3}, rollout=POLICY)
        await act(replica, 4, "abort")
        assert await deleted("/versions/3") == ""
        answer = await replica.call("POST", "/v1/rollouts/default/4/retry", {})
        assert (answer.status, code(answer)) == (409, "rollout_not_possible")
        assert "hello@3 was deleted" in answer.json()["detail"]


async def test_the_failing_nodes_of_a_rollout_try_again(control_site: Site) -> None:
    async with control_site.running() as replica:
        nodes = await first(replica, "a", "b")
        await made(replica, functions={"hello": 2}, rollout=POLICY)
        await (await rollout(replica, 2)).start(replica, nodes[:1])
        await fail(nodes[0])
        later = replica.services.clock.now() + timedelta(hours=1)

        async def waits(conn: Any) -> None:
            text = "UPDATE nodes SET retry_at = $1, failed_generation = generation WHERE name = 'a'"
            await conn.execute(text, later)

        await replica.services.db.transaction(waits)
        assert await ok(replica, "POST", "/v1/releases/default/1/retry") == {"nodes": 0}
        assert await ok(replica, "POST", "/v1/releases/default/2/retry") == {"nodes": 1}
        await nodes[0].sync()


async def test_a_loss_is_allowed_anew_while_nodes_have_the_rows(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, TABLE)
        [node] = await first(replica, "a")
        await replica.call("PUT", "/v1/nodes/self/row-counts", {"counts": {"notes": 3}}, token=node.credential)
        await deploy.schema(replica, "DROP TABLE notes")
        await made(replica, allow_loss=True)
        # The node still has the rows, and somebody else may have allowed it.
        assert await refused(replica, functions={"hello": 2}) == "loss_not_allowed"
        assert (await made(replica, functions={"hello": 2}, allow_loss=True))["losses"][0]["rows"] == 3
