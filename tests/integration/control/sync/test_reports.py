"""How syncs end: results, leases, late and superseded ones, lost answers; each one transaction."""

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from control.protocol import wire
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.replica import Replica, Site, TestNode

DISK_FULL = wire.SyncError("disk_full", "no room")


async def log(replica: Replica, node: str = "one") -> list[Any]:
    """A node's syncs, oldest first."""
    items: list[Any] = (await replica.call("GET", f"/v1/syncs?node={node}")).json()["items"]
    return items[::-1]


async def released(replica: Replica) -> TestNode:
    """A node that has a release to go to."""
    node = await replica.join("one")
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    return node


async def test_a_lease_is_renewed_by_running(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await released(replica)
        plan = await node.plan()
        assert plan.lease == 60
        for step in ("fetch", "compile", "prepare"):
            clock.advance(50)
            answer = await node.report(plan.sync_id, "running", step=step)
            assert answer.json() == {"status": "running", "lease": 60}
        (sync,) = await log(replica)
        assert (sync["status"], sync["step"]) == ("running", "prepare")
        node.apply(plan)
        clock.advance(59)
        assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"
        assert (await replica.node("one"))["failures"] == 0


@pytest.mark.parametrize("found_by", ["monitor", "running", "result", "poll"])
async def test_past_its_lease_a_sync_is_a_counted_failure(control_site: Site, found_by: str) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await released(replica)
        plan = await node.plan()
        await node.report(plan.sync_id, "running", step="compile")
        clock.advance(60)
        if found_by == "monitor":
            await replica.services.monitor().look(clock.now())
        elif found_by == "running":
            assert (await node.report(plan.sync_id, "running")).json() == {"status": "expired", "lease": 0}
        elif found_by == "result":
            answer = await node.report(plan.sync_id, "failed", error=DISK_FULL)
            assert answer.json() == {"status": "expired", "lease": 0, "late": True}
        else:
            assert (await node.plan()).sync_id != plan.sync_id
        shown = await replica.node("one")
        assert (shown["failures"], shown["error"]["code"]) == (1, "sync_expired")
        assert "compile" in shown["error"]["message"]
        assert shown["state"] == ("syncing" if found_by == "poll" else "online")
        first = (await log(replica))[0]
        assert (first["status"], first["error"]["code"]) == ("expired", "sync_expired")
        assert first["error"]["message"] == shown["error"]["message"]


async def test_a_late_success_is_recorded_as_late_and_the_node_is_believed(control_site: Site) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await released(replica)
        plan = await node.plan()
        clock.advance(61)
        node.apply(plan)
        for _ in range(2):
            answer = await node.report(plan.sync_id, "succeeded")
            assert answer.json() == {"status": "expired", "lease": 0, "late": True}
        (sync,) = await log(replica)
        assert (sync["status"], sync["late"]) == ("expired", "succeeded")
        shown = await replica.node("one")
        assert (shown["failures"], shown["at_target"], shown["error"], shown["state"]) == (1, True, None, "online")
        assert (await node.ask()).status == 204


async def test_a_newer_target_supersedes(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await released(replica)
        old = await node.plan()
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 2})
        new = await node.plan()
        assert new.sync_id != old.sync_id
        assert new.generation > old.generation
        assert [sync["status"] for sync in await log(replica)] == ["superseded", "running"]
        # The old one's result is late, and doesn't end the new one.
        node.apply(old)
        answer = await node.report(old.sync_id, "succeeded")
        assert answer.json() == {"status": "superseded", "lease": 0, "late": True}
        shown = await replica.node("one")
        assert (shown["state"], shown["failures"], shown["at_target"]) == ("syncing", 0, False)
        assert [f["version"] for f in shown["functions"]] == [1]
        node.apply(new)
        assert (await node.report(new.sync_id, "succeeded")).json()["status"] == "succeeded"


async def test_a_node_at_work_hears_that_something_newer_is_wanted(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await released(replica)
        plan = await node.plan()
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 2})
        assert (await node.report(plan.sync_id, "running")).json() == {"status": "superseded", "lease": 0}
        assert (await replica.node("one"))["state"] == "online"


async def test_a_lost_result_is_known_from_the_next_poll(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await released(replica)
        plan = await node.plan()
        node.apply(plan)
        assert (await node.poll()).status == 204
        (sync,) = await log(replica)
        assert sync["status"] == "succeeded"
        assert (await replica.node("one"))["last_sync_at"]
        answer = await node.report(plan.sync_id, "succeeded")
        assert answer.json() == {"status": "succeeded", "lease": 0}


async def test_the_same_result_again_changes_nothing(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await released(replica)
        plan = await node.plan()
        for _ in range(3):
            answer = await node.report(plan.sync_id, "failed", error=DISK_FULL)
            assert answer.json() == {"status": "failed", "lease": 0}
        shown = await replica.node("one")
        assert shown["failures"] == 1
        assert shown["error"] == {"code": "disk_full", "message": "no room", "at": shown["error"]["at"]}


async def test_a_success_that_isnt_one(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await released(replica)
        plan = await node.plan()
        for _ in range(2):
            answer = await node.report(plan.sync_id, "succeeded")
            assert answer.json() == {"status": "failed", "lease": 0}
        shown = await replica.node("one")
        assert (shown["at_target"], shown["failures"], shown["error"]["code"]) == (False, 1, "not_at_target")


async def test_many_results_of_one_sync_at_once(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await released(replica)
        plan = await node.plan()
        answers = await asyncio.gather(
            *(node.report(plan.sync_id, "failed", error=DISK_FULL) for _ in range(10)),
            *(node.report(plan.sync_id, "running", step="fetch") for _ in range(10)),
        )
        assert {answer.status for answer in answers} <= {200, 503}
        assert (await replica.node("one"))["failures"] == 1


async def test_control_dies_with_the_answer_unsent(control_site: Site) -> None:
    """The plan's transaction was committed, the answer lost: the same sync is answered again, by any replica."""
    async with control_site.running() as one:
        node = await released(one)
        plan = await node.plan()
    async with control_site.running() as two:
        node.replica = two
        assert (await node.plan()).sync_id == plan.sync_id


async def test_a_node_whose_report_was_lost_is_known_by_its_next_poll(control_site: Site) -> None:
    """R 1.4: it is `online` again, not `syncing` until the lease of its sync ends."""
    async with control_site.running() as replica:
        node = await released(replica)
        node.apply(await node.plan())
        assert (await replica.node("one"))["state"] == "syncing"
        assert (await node.poll()).status == 204
        shown = await replica.node("one")
        assert (shown["state"], shown["standing"], shown["failures"]) == ("online", "at_target", 0)
        assert [sync["status"] for sync in await log(replica)] == ["succeeded"]


BAD_REPORTS: list[tuple[str, Any, int, str]] = [
    ("own", {"status": "done"}, 422, "invalid_body"),
    ("own", {"status": "succeeded"}, 422, "invalid_body"),
    ("own", {"status": "failed", "inventory": {"schema_version": 3}}, 422, "invalid_body"),
    ("own", {"status": "failed", "error": {"code": "x" * 65, "message": ""}}, 422, "invalid_body"),
    ("00000000-0000-4000-8000-000000000000", {"status": "running"}, 404, "unknown_sync"),
    ("other's", {"status": "running"}, 404, "unknown_sync"),
    ("nonsense", {"status": "running"}, 422, "invalid_parameter"),
]


async def test_bad_reports(control_site: Site) -> None:
    async with control_site.running() as replica:
        node, other = await released(replica), await replica.join("other")
        plan, others = await node.plan(), await other.plan()
        for sync_id, body, status, code in BAD_REPORTS:
            sync_id = {"own": plan.sync_id, "other's": others.sync_id}.get(sync_id, sync_id)
            answer = await replica.call("PUT", f"/v1/syncs/{sync_id}", body, token=node.credential)
            assert (answer.status, answer.json()["code"]) == (status, code), body
        assert [sync["status"] for sync in await log(replica)] == ["running"]
        assert (await replica.node("one"))["failures"] == 0


async def test_what_a_text_of_a_node_may_hold(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await released(replica)
        plan = await node.plan()
        answer = await node.report(plan.sync_id, "failed", error=wire.SyncError("a", '\U0001f30a " \n'))
        assert answer.status == 200, answer.body
        assert (await replica.node("one"))["error"]["message"] == '\U0001f30a " \n'
        assert [sync["error"] for sync in await log(replica)] == [{"code": "a", "message": '\U0001f30a " \n'}]


@pytest.mark.parametrize(
    "retry_at",
    [
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-12))),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=12))),
        datetime(9999, 12, 31, 23, 59, 59, 999_999),
        datetime(1, 1, 1),
        datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=23, minutes=59))),
    ],
    ids=str,
)
async def test_a_time_out_of_range_harms_nobody(control_site: Site, retry_at: datetime) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as replica:
        node = await released(replica)
        plan = await node.plan()
        answer = await node.report(plan.sync_id, "failed", error=DISK_FULL, retry_at=retry_at)
        assert answer.json() == {"status": "failed", "lease": 0}
        assert (await replica.call("GET", "/v1/nodes")).status == 200
        shown = datetime.fromisoformat((await replica.node("one"))["retry_at"])
        assert abs(shown - clock.now()) <= timedelta(days=366)
        node.failed = wire.FailedGeneration(plan.generation, retry_at)
        assert (await node.poll()).status in (200, 204)
