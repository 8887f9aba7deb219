"""What fails round the agent: control and the store that can't be reached, a full disk, a mistake of its own."""

import errno
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control.local.pki import Pki
from control.protocol import wire
from edge_runtime import files
from edge_runtime.sync import artifacts as artifacts_module
from edge_runtime.sync import identity
from edge_runtime.sync.control_client import ControlClient, NoAnswer
from edge_runtime.sync.sync_outcomes import Outbox
from tests.support.agents import Control, Edge, change_plans, edge, joined, running_control
from tests.support.releases import READ, answers, artifacts, first_release, push, sha


def failing(number: int) -> Callable[..., Any]:
    """Return what fails with this number of an error, as a disk does."""

    def fails(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fails


async def test_a_report_that_could_not_be_sent_waits_on_disk_and_goes_first(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await joined(control, tmp_path)
    real, broken = ControlClient.report, True

    async def report(self: ControlClient, sync_id: str, update: wire.SyncUpdate) -> wire.SyncState:
        if broken:
            raise NoAnswer("unreachable", "the cable was cut")
        return await real(self, sync_id, update)

    monkeypatch.setattr(ControlClient, "report", report)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        own = await node.until(lambda s: s["report_waits"] and s["control"]["error"])
        assert own["control"]["error"]["message"] == "the cable was cut"
    assert Outbox(tmp_path).waiting() is not None
    assert [s["status"] for s in (await control.call("GET", "syncs"))["items"]] == ["running"]
    broken = False
    async with edge(tmp_path) as node:
        await control.until(lambda n: n["at_target"])
        await node.until(lambda s: not s["report_waits"] and s["at_target"])
    assert [s["status"] for s in (await control.call("GET", "syncs"))["items"]] == ["succeeded"]


async def test_a_disk_that_takes_nothing_costs_no_report(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the node keeps for a start can't be written, removed or read."""
    await joined(control, tmp_path)

    async with edge(tmp_path) as node:
        await first_release(control)
        await control.until(lambda n: n["at_target"])
        for method in ("begin", "end", "keep"):
            monkeypatch.setattr(Outbox, method, failing(errno.EROFS))
        monkeypatch.setattr(files, "remove", failing(errno.EROFS))
        await push(control, 2)
        await answers(node, 2)
        await control.until(lambda n: n["at_target"])
        await node.until(lambda s: s["at_target"] and s["sync"] is None)
    syncs = (await control.call("GET", "syncs"))["items"]
    assert [s["status"] for s in syncs] == ["succeeded"] * 2
    # A start, too: the attempt can't be read.
    monkeypatch.undo()
    (tmp_path / "outbox").mkdir(exist_ok=True)
    (tmp_path / "outbox" / "attempt.json").mkdir()
    async with edge(tmp_path) as node:
        await answers(node, 2)
        await node.until(lambda s: s["at_target"])


async def test_a_new_name_that_cannot_be_kept_is_gone_by_until_the_next_start(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await joined(control, tmp_path)

    async with edge(tmp_path) as node:
        await first_release(control)
        await control.until(lambda n: n["at_target"])
        with monkeypatch.context() as full:
            full.setattr(identity, "write", failing(errno.ENOSPC))
            await control.call("POST", "nodes/edge-1/rename", {"name": "tokyo-1"})
            # The polls say it, so that control has nothing to tell, and holds them.
            own = await node.until(lambda s: s["node"]["name"] == "tokyo-1")
            assert (own["at_target"], own["control"]["error"], own["next_attempt"]) == (True, None, None)
            # What is on disk isn't taken for another node's when control can't be reached.
            await control.stop()
            await node.until(lambda s: s["control"]["error"])
            await control.start()
            own = await node.until(lambda s: s["control"]["reachable"])
            assert own["node"]["name"] == "tokyo-1"
    assert identity.read(tmp_path).name == "edge-1"
    async with edge(tmp_path) as node:
        await node.until(lambda s: s["at_target"] and identity.read(tmp_path).name == "tokyo-1")


async def test_a_new_credential_that_cannot_be_kept_holds_up_no_sync(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await joined(control, tmp_path)
    who = identity.read(tmp_path)
    async with ControlClient(who.control_url, identity.ca_path(tmp_path), who.credential) as session:
        identity.write(tmp_path, who.rotated(await session.rotate()))

    with monkeypatch.context() as full:
        full.setattr(identity, "write", failing(errno.ENOSPC))
        async with edge(tmp_path) as node:
            await first_release(control)
            await answers(node, 1)
            own = await node.until(lambda s: s["at_target"])
            assert own["control"]["error"] is None
    assert identity.read(tmp_path).next_credential
    async with edge(tmp_path) as node:
        await node.until(lambda s: s["at_target"] and not identity.read(tmp_path).next_credential)


async def test_a_report_that_cannot_be_removed_is_told_once(control: Control, tmp_path: Path) -> None:
    await joined(control, tmp_path)
    outbox = Outbox(tmp_path)
    outbox.keep("00000000-0000-0000-0000-000000000000", wire.SyncUpdate("succeeded"))
    found = outbox.waiting()
    assert found is not None
    file = tmp_path / "outbox" / "report.json"
    kept = file.read_bytes()
    outbox.clear(found.sync_id)
    # As a disk leaves it that can't be written.
    file.write_bytes(kept)
    assert outbox.waiting() is None


async def test_an_artifact_that_cannot_be_read_is_fetched_again(control: Control, tmp_path: Path) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await control.until(lambda n: n["at_target"])
    artifact = tmp_path / "artifacts" / f"{sha(1)}.wasm"
    real = artifacts_module._sha256

    def unreadable(path: Path) -> str:
        if path == artifact and path.read_bytes() == b"a bad block":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    artifact.write_bytes(b"a bad block")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(artifacts_module, "_sha256", unreadable)
        async with edge(tmp_path) as node:
            await node.until(lambda s: s["at_target"] and artifact.read_bytes() != b"a bad block")
            await answers(node, 1)
    syncs = (await control.call("GET", "syncs"))["items"]
    assert {s["status"] for s in syncs} == {"succeeded"}


async def test_the_loop_waits_for_no_disk(control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is synced to disk is synced by other threads, which may take as long as they like."""
    await joined(control, tmp_path)
    synced: set[tuple[str, bool]] = set()
    write, remove = files.write, files.remove

    def in_loop() -> bool:
        return threading.current_thread() is threading.main_thread()

    def written(path: Path, data: bytes, mode: int = 0o600) -> None:
        synced.add((path.name, in_loop()))
        write(path, data, mode)

    def removed(path: Path) -> None:
        synced.add((f"no {path.name}", in_loop()))
        remove(path)

    monkeypatch.setattr(files, "write", written)
    monkeypatch.setattr(files, "remove", removed)
    real, broken = ControlClient.report, True

    async def report(self: ControlClient, sync_id: str, update: wire.SyncUpdate) -> wire.SyncState:
        if broken:
            raise NoAnswer("unreachable", "the cable was cut")
        return await real(self, sync_id, update)

    monkeypatch.setattr(ControlClient, "report", report)
    async with edge(tmp_path, rotate_after=timedelta(0)) as node:
        await first_release(control)
        await node.until(lambda s: s["report_waits"])
        broken = False
        await node.until(lambda s: not s["report_waits"] and s["at_target"])
    expected = {"identity.json", "report.json", "no report.json", "witness.json", "earlier.json"}
    assert synced == {(name, False) for name in expected}


async def test_without_control_the_last_release_serves_and_the_node_says_why_it_is_alone(
    control: Control, tmp_path: Path
) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await control.until(lambda n: n["at_target"])
    await control.stop()
    async with edge(tmp_path) as node:
        await answers(node, 1)
        own = await node.until(lambda s: s["error"])
        assert own["error"]["code"] == "unreachable"
        assert own["next_attempt"] is not None
        assert own["release"]["number"] == 1
        await control.start()
        await node.until(lambda s: s["at_target"] and s["error"] is None)
        await push(control, 2)
        await answers(node, 2)


async def test_a_control_that_restarts_is_found_again_by_a_held_poll(control: Control, node: Edge) -> None:
    await first_release(control)
    await node.until(lambda s: s["at_target"])
    await control.stop()
    await node.until(lambda s: s["error"])
    await control.start()
    await push(control, 2)
    await answers(node, 2)


async def test_artifacts_come_through_control_where_the_store_is_private(
    database_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> None:
    async with running_control(database_url, bucket_url, pki, artifacts_delivery="control") as control:
        await joined(control, tmp_path)
        async with edge(tmp_path) as node:
            await first_release(control)
            await answers(node, 1)


async def test_a_stale_presigned_url_is_exchanged_for_a_fresh_one(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(plan: wire.Plan) -> None:
        for function in plan.functions:
            function.url = function.url.replace("X-Amz-Signature=", "X-Amz-Signature=00")

    change_plans(monkeypatch, stale)
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)


async def test_a_mistake_of_the_agent_is_told_and_does_not_end_the_serving(
    control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(control)
    await answers(node, 1)
    await control.until(lambda n: n["at_target"])

    async def broken(_: Any) -> None:
        raise ZeroDivisionError("who wrote this?")

    monkeypatch.setattr(node.agent, "_follow", broken)
    await push(control, 2)
    own = await node.until(lambda s: s["error"])
    assert own["error"]["code"] == "internal"
    assert "who wrote this?" in own["error"]["message"]
    await answers(node, 1)
    monkeypatch.undo()
    await answers(node, 2)


async def test_room_is_made_on_a_full_disk_of_what_failed_releases_left(
    control: Control, node: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await first_release(control)
    await answers(node, 1)
    await push(control, 2)
    await answers(node, 2)
    await push(control, 3, {**READ, "probe": {"path": "/", "status": 418}})
    await control.until(lambda n: n["failures"] == 1)
    assert artifacts(tmp_path) == {sha(1), sha(2), sha(3)}

    def little(_: Any) -> Any:
        """Enough when two of the three files have gone."""
        free = 2**30 if len(artifacts(tmp_path)) == 1 else 2**20
        return SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)

    monkeypatch.setattr(artifacts_module.os, "statvfs", little)
    await push(control, 4)
    await answers(node, 4)
    await answers(node, 4)
    assert artifacts(tmp_path) == {sha(2), sha(4)}


async def test_a_disk_without_room_is_told_with_how_much_is_missing(
    control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts_module.os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    await first_release(control)
    seen = await control.until(lambda n: n["error"] is not None)
    assert seen["error"]["code"] == "disk_full"
    assert "MiB free" in seen["error"]["message"]
