"""A node with the real control and the real store: its backup begins and ends as control says, and has all writes."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from control.protocol import wire
from edge_runtime.backup.local_files import LocalFiles
from edge_runtime.cli.status import render
from edge_runtime.release import checkpoint_schedule
from edge_runtime.sync.control_client import ControlClient
from tests.guests.build import guest
from tests.integration.edge_runtime.release.test_replaced_database import prepared
from tests.support import lost_writes
from tests.support.agents import Control, Edge, edge, joined
from tests.support.deadlines import deadline, scaled
from tests.support.node_process import NodeProcess
from tests.support.programs import Faults
from tests.support.stored_backups import restored, stored

pytestmark = pytest.mark.never_retry

ORDERS = "CREATE TABLE orders (id INTEGER PRIMARY KEY, text TEXT)"
INSERT = "INSERT INTO orders (text) VALUES (?)"


async def release(control: Control) -> None:
    """Make a release with the table, and a function that writes to it."""
    await control.call("POST", "schema-changes", {"name": "orders", "sql": ORDERS})
    await control.release(functions={"sql": await control.push("sql", guest("sql"), {"sql": "write"})})
    await control.until(lambda n: n["at_target"] and n["schema_version"] == 1)


async def back_up(control: Control, interval: float = 1.0) -> None:
    await control.call("PUT", "groups/default/backup", {"interval": interval})


async def write(node: Edge, text: str) -> None:
    statement = orjson.dumps({"sql": INSERT, "params": [text]})
    async with node.http.post("/functions/sql", data=statement) as answer:
        assert answer.status == 200, await answer.text()


def texts(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM orders ORDER BY id")]


def is_whole(status: Any) -> bool:
    """Whether the store has everything, as the node's status says."""
    backup = status["backup"]
    return bool(backup and backup["reached"] and backup["lag_seconds"] == 0)


async def caught_up(node: Edge) -> Any:
    return (await node.until(is_whole))["backup"]


async def files(control: Control, node: Edge, lineage: str) -> Any:
    who = (await node.status())["node"]["id"]
    return (await stored(control.server.app.services.store, who, lineage))[lineage]


@pytest.fixture
async def backed(control: Control, node: Edge) -> Edge:
    """A node at release 1 whose group is backed up every second."""
    await release(control)
    await back_up(control)
    return node


async def test_what_was_written_is_restored_by_litestream(control: Control, backed: Edge, tmp_path: Path) -> None:
    await caught_up(backed)
    for number in range(20):
        await write(backed, f"order {number}")
    told = await caught_up(backed)
    restored_file = await restored(await files(control, backed, told["lineage"]), tmp_path / "restored")
    assert texts(restored_file) == [f"order {number}" for number in range(20)]
    assert told["error"] is None
    assert told["pending_bytes"] == 0
    status = await backed.status()
    assert f"it has everything; 0 bytes wait here, history {told['lineage']} at {told['reached']}" in render(status)
    async with backed.http.get("/_skerry/metrics") as answer:
        metrics = dict(line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if line[0] != "#")
    assert float(metrics["skerry_edge_backup_lag_seconds"]) == 0.0
    assert float(metrics["skerry_edge_backup_pending_bytes"]) == 0.0
    assert float(metrics["skerry_edge_backup_failures_total"]) == 0.0
    assert float(metrics["skerry_edge_backup_uploads_total"]) == told["uploads"] >= 2


async def test_what_was_written_is_brought_to_the_store_while_others_write_on(control: Control, backed: Edge) -> None:
    await back_up(control, 3600.0)
    await backed.until(lambda s: s["backup"] and s["backup"]["interval"] == 3600.0)
    backup = backed.front.backup
    assert backup is not None
    async with deadline(60):
        await backup.finish()
    before = backup.uploads

    async def write_on() -> None:
        while True:
            await write(backed, "more")

    await write(backed, "order")
    writing = asyncio.create_task(write_on())
    async with deadline(60):
        assert await backup.finish() is None
    assert backup.uploads > before
    writing.cancel()
    await asyncio.wait([writing])
    async with deadline(60):
        position = await backup.finish()
    assert position is not None
    assert is_whole(await backed.status())


async def test_what_checkpoints_ship_between_two_uploads_is_put_as_one_file(
    control: Control, backed: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = ControlClient.backup_places

    async def counted(self: ControlClient, lineage: str, names: list[str]) -> wire.Uploads:
        asked.append(len(names))
        return await real(self, lineage, names)

    await caught_up(backed)
    # With this one, places are asked for those to come.
    written = ["the first"]
    await write(backed, written[0])
    await caught_up(backed)
    await back_up(control, 3600.0)
    await backed.until(lambda s: s["backup"] and s["backup"]["interval"] == 3600.0)
    backup, checkpoints = backed.front.backup, backed.front.checkpoints
    assert backup is not None
    async with deadline(60):
        await backup.finish()
    monkeypatch.setattr(ControlClient, "backup_places", counted)
    monkeypatch.setattr(checkpoint_schedule, "START", 32 * 1024)
    local, before, made = LocalFiles(tmp_path), backup.uploads, checkpoints.made
    async with deadline(60):
        while checkpoints.made < made + 3 or len(local.waiting()) < 3:
            written.append(f"{len(written)}: " + 20_000 * "o")
            await write(backed, written[-1])
    assert backup.uploads == before
    async with deadline(60):
        assert await backup.finish() is not None
    assert (backup.uploads, backup.failures, local.waiting()) == (before + 1, 0, [])
    assert asked == [1], "nobody has known its name"
    written.append("the last")
    await write(backed, written[-1])
    async with deadline(60):
        assert await backup.finish() is not None
    assert asked == [1], "the places of before are forgotten"
    lineage = (await backed.status())["backup"]["lineage"]
    assert texts(await restored(await files(control, backed, lineage), tmp_path / "restored")) == written


async def test_control_is_told_once_by_each_side(control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    polls: list[wire.Poll] = []
    answers: list[wire.BackUp] = []
    real = ControlClient.poll

    async def poll(client: ControlClient, asked: wire.Poll) -> wire.Answer | None:
        polls.append(asked)
        answer = await real(client, asked)
        answers.extend([answer] if isinstance(answer, wire.BackUp) else [])
        return answer

    monkeypatch.setattr(ControlClient, "poll", poll)
    await release(control)
    await back_up(control, 2.5)
    await caught_up(node)
    async with deadline(60):
        while polls[-1].backup != 2.5:
            await asyncio.sleep(0.02)
    assert [answer.interval for answer in answers] == [2.5]
    own = await node.front.agent.numbers._measure()  # type: ignore[union-attr, misc]
    assert own.backup is not None
    assert (own.backup.reached >= 1, own.backup.pending, own.backup.error) == (True, 0, "")


async def test_a_node_without_a_network_goes_on_after_a_restart(control: Control, tmp_path: Path) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await release(control)
        await back_up(control)
        await write(node, "before")
        lineage = (await caught_up(node))["lineage"]
    await control.stop()
    async with edge(tmp_path) as node:
        await write(node, "meanwhile")
        found = await node.until(lambda s: s["backup"] and s["backup"]["pending_bytes"] and s["backup"]["error"])
        assert "no connection to" in found["backup"]["error"]
        assert f"\nbackup     {found['backup']['error']}\n" in render(found)
        assert found["backup"]["lineage"] == lineage
        await node.until(lambda s: s["backup"]["lag_seconds"] > 1)
    async with edge(tmp_path) as node:
        await node.until(lambda s: s["backup"] and s["backup"]["pending_bytes"])
        await control.start()
        await write(node, "after")
        told = await caught_up(node)
        assert (told["lineage"], told["error"]) == (lineage, None)
        made = await restored(await files(control, node, lineage), tmp_path / "restored")
    assert texts(made) == ["before", "meanwhile", "after"]


async def test_another_database_is_another_history_and_the_last_of_this_one_is_at_the_store(
    control: Control, backed: Edge, tmp_path: Path
) -> None:
    await back_up(control, 600.0)
    await write(backed, "early")
    await backed.until(lambda s: s["backup"] and s["backup"]["reached"])
    edge: Any = SimpleNamespace(front=backed.front, state=SimpleNamespace(path=tmp_path))
    copy = await prepared(edge)
    await write(backed, "late")
    _, position = await backed.front.manager.replace_database(copy)
    assert position is not None
    before = await files(control, backed, position.lineage)
    assert max(file.last for file in before) == position.transaction
    assert texts(await restored(before, tmp_path / "before")) == ["early", "late"]
    await write(backed, "after")
    await back_up(control, 1.0)
    told = (await backed.until(lambda s: is_whole(s) and s["backup"]["lineage"] != position.lineage))["backup"]
    assert told["error"] is None
    after = await files(control, backed, told["lineage"])
    assert texts(await restored(after, tmp_path / "after")) == ["early", "after"]


async def test_an_end_leaves_nothing_on_the_node(control: Control, backed: Edge, tmp_path: Path) -> None:
    await caught_up(backed)
    await control.call("DELETE", "groups/default/backup")
    await backed.until(lambda s: s["backup"] is None)
    async with deadline(60):
        while LocalFiles(tmp_path).is_on:
            await asyncio.sleep(0.02)
    await write(backed, "unseen")
    await asyncio.sleep(0.3)
    assert LocalFiles(tmp_path).waiting() == []
    await back_up(control)
    await caught_up(backed)


async def test_a_kill_between_the_upload_and_the_removal_loses_and_repeats_nothing(
    control: Control, faults: Faults, tmp_path: Path
) -> None:
    node = NodeProcess(control, tmp_path, {"SKERRY_FAULTS": str(faults.folder)})
    await node.join()
    assert await node.start()
    await release(control)
    await back_up(control)

    async def until_whole() -> Any:
        async with deadline(60):
            while True:
                async with node.http.get("/_skerry/status") as answer:
                    status = await answer.json()
                if is_whole(status):
                    return status
                await asyncio.sleep(0.05)

    async def insert(text: str) -> None:
        statement = orjson.dumps({"sql": INSERT, "params": [text]})
        async with node.http.post("/functions/sql", data=statement) as answer:
            assert answer.status == 200, await answer.text()

    try:
        before = await until_whole()
        for point in ("edge.upload.before", "edge.upload.after"):
            faults.arm(point, "kill")
            await insert(point)
            async with deadline(60):
                while node.ended is None:
                    await asyncio.sleep(0.02)
            await node.end()
            assert await node.start()
            after = await until_whole()
            assert after["backup"]["lineage"] == before["backup"]["lineage"]
            assert after["backup"]["error"] is None
    finally:
        await node.end()
    lineage = before["backup"]["lineage"]
    found = await stored(control.server.app.services.store, before["node"]["id"], lineage)
    assert texts(await restored(found[lineage], tmp_path / "restored")) == ["edge.upload.before", "edge.upload.after"]


async def test_a_lost_disk_lacks_less_than_one_interval_and_a_half(
    control: Control, backed: Edge, tmp_path: Path
) -> None:
    """Measured as a restore would have it, while somebody writes all the time; one in a hundred may lack more."""
    interval = 2.0
    await back_up(control, interval)
    told = await caught_up(backed)
    await backed.until(lambda s: s["backup"]["interval"] == interval)
    store, who = control.server.app.services.store, (await backed.status())["node"]["id"]
    acknowledged, looks = await lost_writes.write_and_look(
        lambda number: write(backed, f"order {number}"),
        lambda: lost_writes.look(store, who, told["lineage"]),
        seconds=14.0,
        pause=0.1,
    )
    await caught_up(backed)
    rows = lost_writes.rows_by_transaction(await files(control, backed, told["lineage"]), tmp_path, "orders")
    assert max(rows.values()) == len(acknowledged)
    losses = lost_writes.lost(acknowledged, looks, rows)
    assert len(losses) > 50
    assert max(losses) > interval / 4, "it measures something"
    assert lost_writes.quantile(losses, 0.99) <= scaled(1.5 * interval), losses
