"""The agent with the real control, store and front: a release goes out, fails, is told, is tried again."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from control.local.pki import Pki
from control.protocol import wire
from control.protocol.manifest import MANIFEST_FIELDS
from edge_runtime.aot_cache import key
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.sync import attempt, capabilities, retries
from edge_runtime.sync.control_client import ControlClient
from edge_runtime.wasmedge import BEST, QUICK
from tests.guests.version import version
from tests.support.agents import Control, Edge, Refused, change_plans, edge, joined, running_control
from tests.support.deadlines import deadline
from tests.support.moved_clock import MovedClock
from tests.support.releases import READ, answers, artifacts, first_release, push, sha


async def test_a_release_is_fetched_compiled_applied_served_and_reported(control: Control, node: Edge) -> None:
    await first_release(control)
    await answers(node, 1)
    seen = await control.until(lambda n: n["at_target"])
    assert seen["schema_version"] == 1
    assert [(f["name"], f["version"], f["sha256"]) for f in seen["functions"]] == [("hello", 1, sha(1))]
    assert (seen["state"], seen["failures"], seen["error"]) == ("online", 0, None)
    own = await node.until(lambda s: s["at_target"])
    assert own["error"] is None
    assert own["control"]["reachable"]
    assert own["next_attempt"] is None
    syncs = (await control.call("GET", "syncs"))["items"]
    assert [s["status"] for s in syncs] == ["succeeded"]


async def test_a_waiting_node_converges_well_within_a_second(control: Control, node: Edge) -> None:
    await first_release(control)
    await answers(node, 1)
    taken = []
    for number in range(2, 6):
        pushed = await control.push("hello", version(number), READ)
        began = time.monotonic()
        await control.release(functions={"hello": pushed})
        await answers(node, number)
        taken.append(time.monotonic() - began)
    print(f"release to answer: {[round(t, 3) for t in taken]}")
    assert min(taken) < 5.0


async def test_two_releases_are_kept_on_disk_and_older_ones_go_with_their_aot_files(
    control: Control, node: Edge, tmp_path: Path
) -> None:
    await first_release(control)
    await answers(node, 1)
    for number in (2, 3):
        await push(control, number)
        await answers(node, number)
    await control.until(lambda n: n["at_target"])
    async with deadline(60):
        while artifacts(tmp_path) != {sha(2), sha(3)}:
            await asyncio.sleep(0.02)
    kept = {key(sha(n), level) for n in (2, 3) for level in (QUICK, BEST)}
    async with deadline(60):
        while not {p.stem for p in (tmp_path / "aot").glob("*.so")} <= kept:
            await asyncio.sleep(0.02)


async def test_a_release_that_fails_is_told_by_both_sides_and_waits(
    clock: MovedClock, control: Control, node: Edge
) -> None:
    await first_release(control)
    await answers(node, 1)
    # The time of the next attempt doesn't come while the test looks, however slow the machine is.
    clock.stand()
    await push(control, 2, {**READ, "probe": {"path": "/", "status": 418}})
    seen = await control.until(lambda n: n["error"] is not None)
    own = await node.until(lambda s: s["error"])
    assert own["error"]["code"] == seen["error"]["code"]
    assert "418" in own["error"]["message"]
    assert own["next_attempt"] is not None
    assert seen["retry_at"] is not None
    assert seen["failures"] == 1
    assert not own["at_target"]
    await answers(node, 1)  # the old release serves on
    # No second attempt before its time.
    await asyncio.sleep(1.0)
    assert (await control.node())["failures"] == 1


async def test_an_operators_retry_ends_the_wait_at_once(
    control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_BASE", 3600.0)
    monkeypatch.setattr(retries, "RETRY_CAP", 3600.0)
    await first_release(control)
    await answers(node, 1)
    await push(control, 2, {**READ, "probe": {"path": "/", "status": 418}})
    await control.until(lambda n: n["failures"] == 1)
    await control.call("POST", "nodes/edge-1/retry", {})
    await control.until(lambda n: n["failures"] == 2)


async def test_a_new_target_ends_the_wait_at_once_and_the_error(
    control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_BASE", 3600.0)
    monkeypatch.setattr(retries, "RETRY_CAP", 3600.0)
    await first_release(control)
    await answers(node, 1)
    await push(control, 2, {**READ, "probe": {"path": "/", "status": 418}})
    await control.until(lambda n: n["failures"] == 1)
    await push(control, 3)
    await answers(node, 3)
    await node.until(lambda s: s["at_target"] and s["error"] is None and s["next_attempt"] is None)


async def test_the_wait_ends_by_itself(control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_BASE", 0.5)
    await first_release(control)
    await answers(node, 1)
    await push(control, 2, {**READ, "probe": {"path": "/", "status": 418}})
    await control.until(lambda n: n["failures"] >= 3)
    assert (await node.status())["attempts"] >= 3


async def test_a_node_whose_clock_is_wrong_waits_as_long_as_it_should(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ControlClient, "_note_date", lambda self, *_: setattr(self, "skew", 600.0))
    await joined(control, tmp_path)
    async with edge(tmp_path, jitter=lambda: 0.0) as node:
        await first_release(control)
        await answers(node, 1)
        await push(control, 2, {**READ, "probe": {"path": "/", "status": 418}})
        seen = await control.until(lambda n: n["failures"] == 1)
        ahead = datetime.fromisoformat(seen["retry_at"]) - datetime.now(UTC)
        assert timedelta(seconds=590) < ahead < timedelta(seconds=630)
        await control.until(lambda n: n["failures"] == 2)
        # By control's clock, whenever this test comes to look.
        second, first, _ = (await control.call("GET", "syncs"))["items"]
        waited = datetime.fromisoformat(second["started_at"]) - datetime.fromisoformat(first["ended_at"])
        assert timedelta(seconds=1) < waited < timedelta(seconds=60)


async def test_a_schema_that_fails_on_this_nodes_data_is_told_and_its_amendment_applied(
    control: Control, node: Edge
) -> None:
    await first_release(control)
    await answers(node, 1)
    twice = version(7, "INSERT INTO generation VALUES (1)")
    await control.release(
        functions={"twice": await control.push("twice", twice, {"sql": "write", "read_only_methods": []})}
    )
    await control.until(lambda n: n["at_target"] and len(n["functions"]) == 2)
    assert (await node.call("twice"))[0] == 200
    unique = "CREATE UNIQUE INDEX once ON generation (number)"
    change = await control.call("POST", "schema-changes", {"name": "second", "sql": unique})
    await control.release(functions={"hello": await control.push("hello", version(2), READ)})
    seen = await control.until(lambda n: n["error"] is not None)
    assert seen["schema_version"] == 1
    assert seen["error"]["code"].startswith("schema_")
    await answers(node, 1)
    better = f"DELETE FROM generation WHERE rowid > (SELECT min(rowid) FROM generation);\n{unique}"
    await control.call("POST", f"schema-changes/{change['number']}/revisions", {"sql": better, "allow_loss": True})
    await control.release(reason="the amended change")
    await answers(node, 2)
    assert (await control.until(lambda n: n["at_target"]))["schema_version"] == 2


async def test_a_manifest_that_the_node_does_not_know_fails_the_sync_by_name(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def newer(plan: wire.Plan) -> None:
        """A control of a later version: what it keeps has a field more."""
        for function in plan.functions if plan.generation > 1 else ():
            function.manifest["http"] = True

    change_plans(monkeypatch, newer)
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await push(control, 2)
        seen = await control.until(lambda n: n["error"] is not None)
        assert seen["error"]["code"] == "manifest_unknown"
        assert "function hello" in seen["error"]["message"]
        await answers(node, 1)


async def test_a_node_tells_what_it_can_run_after_its_upgrade_and_a_release_waits_for_that(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = capabilities.document()
    old = {**new, "manifest": [field for field in MANIFEST_FIELDS if field != "secrets"]}
    sent: list[wire.Poll] = []
    real = ControlClient.poll

    async def watched(self: ControlClient, poll: wire.Poll) -> wire.Answer | None:
        sent.append(poll)
        return await real(self, poll)

    monkeypatch.setattr(ControlClient, "poll", watched)
    with monkeypatch.context() as before:
        before.setattr(capabilities, "document", lambda: old)
        await joined(control, tmp_path)
        async with edge(tmp_path) as node:
            await first_release(control)
            await answers(node, 1)
            await control.until(lambda n: n["at_target"])
    assert (await control.node())["capabilities"] == old
    wanted = {"functions": {"hello": await control.push("hello", version(2), {**READ, "secrets": ["KEY"]})}}
    with pytest.raises(Refused) as caught:
        await control.release(**wanted)
    assert caught.value.code == "nodes_unfit"
    (tmp_path / "secrets.toml").write_text('[hello]\nKEY = "x"\n')
    (tmp_path / "secrets.toml").chmod(0o600)
    sent.clear()
    async with edge(tmp_path) as node:
        await control.until(lambda n: n["capabilities"] == new)
        await control.release(**wanted)
        await answers(node, 2)
        await control.until(lambda n: n["at_target"])
    assert len({poll.capabilities_digest for poll in sent}) == 1
    assert [poll.capabilities is not None for poll in sent[:2]] == [False, True]
    assert sum(poll.capabilities is not None for poll in sent) == 1


async def test_a_plan_of_a_lower_generation_is_refused(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restored(plan: wire.Plan) -> None:
        """A control whose metadata came back from an older backup."""
        if plan.generation > 1:
            plan.generation = 0

    change_plans(monkeypatch, restored)
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await push(control, 2)
        seen = await control.until(lambda n: n["error"] is not None)
        assert seen["error"]["code"] == "generation_lower"
        await answers(node, 1)


async def test_a_slow_sync_keeps_its_lease(
    database_url: str, bucket_url: str, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pause of the machine, which is one of the renewals too, must be shorter than two thirds of it.
    async with running_control(database_url, bucket_url, pki, sync_lease=6.0) as control:
        await joined(control, tmp_path)
        async with edge(tmp_path) as node:
            real = node.front.compiler.functions

            async def slow(planned: list[LocalFunction], *more: Any) -> list[LocalFunction]:
                # Longer than a lease that nobody renews.
                await asyncio.sleep(8)
                return await real(planned, *more)

            monkeypatch.setattr(node.front.compiler, "functions", slow)
            await first_release(control)
            # A renewal may come while it fetches, from a slow store.
            await control.until(lambda n: n["sync"] and n["sync"]["step"] == "compile")
            assert (await node.status())["sync"]["step"] == "compile"
            await answers(node, 1)
            await control.until(lambda n: n["at_target"])
        assert [s["status"] for s in (await control.call("GET", "syncs"))["items"]] == ["succeeded"]


async def test_work_that_was_overtaken_is_ended_for_the_newer_release(
    clock: MovedClock, control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(control)
    # The first sync has been reported: it isn't the one that the node's status tells of below, nor is it overtaken.
    await control.until(lambda n: n["at_target"])
    real = node.front.compiler.functions

    async def for_ever(planned: list[LocalFunction], *more: Any) -> list[LocalFunction]:
        if planned[0].sha256 == sha(2):
            await asyncio.sleep(3600)
        return await real(planned, *more)

    monkeypatch.setattr(node.front.compiler, "functions", for_ever)
    await push(control, 2)
    await node.until(lambda s: s["sync"] and s["sync"]["step"] == "compile")
    await push(control, 3)
    await clock.move(attempt.RENEW_CAP)
    clock.go()
    await answers(node, 3)
    seen = await control.until(lambda n: n["at_target"])
    assert seen["failures"] == 0
    statuses = [s["status"] for s in (await control.call("GET", "syncs"))["items"]]
    assert statuses == ["succeeded", "superseded", "succeeded"]
