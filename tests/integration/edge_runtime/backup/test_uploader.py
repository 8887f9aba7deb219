"""Files of a backup get to the real store by the places that the real control gives, in order, once, and verified."""

import asyncio
import logging
import os
import shutil
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from control.backups import objects
from control.backups.objects import BackupFile
from control.protocol import wire
from edge_runtime.backup import upload_rules, uploader
from edge_runtime.backup.local_files import LocalFiles
from edge_runtime.backup.uploader import Uploader
from edge_runtime.sync.control_client import ControlClient
from tests.support.backup_files import states
from tests.support.deadlines import deadline
from tests.support.deploy import ok
from tests.support.replica import Replica, Site, TestNode
from tests.support.scripted_commits import ScriptedCommits
from tests.support.store_proxy import StoreProxy, always, never, store_proxy
from tests.support.stored_backups import restored, stored

INTERVAL = 0.05
DEADLINE = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return states(tmp_path_factory.mktemp("source"), 12)


@dataclass
class Backed:
    """A node's uploader with commits that the test makes, a real control, and a proxy before the real store."""

    replica: Replica
    proxy: StoreProxy
    node: TestNode
    state: Path
    commits: ScriptedCommits
    uploader: Uploader

    async def until(self, condition: Callable[[], Any]) -> None:
        async with deadline(DEADLINE):
            while not condition():
                await asyncio.sleep(0.01)

    def behind(self) -> bool:
        """Whether the store lacks something that was committed."""
        own = self.uploader
        shipped = own._shipped
        return shipped is None or own._stamp != own._stamp_now() or own._reached != (shipped.lineage, shipped.last)

    async def caught_up(self) -> dict[BackupFile, bytes]:
        """Wait until the store has everything, and return what it has of the present history."""
        await self.until(lambda: not self.behind())
        lineage = self.lineage
        return (await stored(self.replica.services.store, self.node.id, lineage))[lineage]

    @property
    def lineage(self) -> str:
        told = self.uploader.state()
        assert told is not None
        return told.lineage

    @property
    def puts(self) -> list[str]:
        """The names of files that were put through the proxy, each as often as it was."""
        lines = [line for line in self.proxy.requests if line.startswith("PUT ")]
        return [line.partition("?")[0].split("/ltx/")[1] for line in lines]


@asynccontextmanager
async def running(made: Uploader) -> AsyncIterator[None]:
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


@asynccontextmanager
async def session(replica: Replica, node: TestNode) -> AsyncIterator[ControlClient]:
    async with ControlClient(replica.url, replica.ca, node.credential) as client:
        yield client


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_rules, "BASE", 0.05)
    monkeypatch.setattr(upload_rules, "CAP", 0.2)


@pytest.fixture
def settings() -> dict[str, Any]:
    """Further settings of control."""
    return {}


@pytest.fixture
def bandwidth() -> int:
    return 0


@pytest.fixture
async def backed(
    control_site: Site, made: list[bytes], settings: dict[str, Any], bandwidth: int, tmp_path: Path
) -> AsyncIterator[Backed]:
    """A node whose uploader doesn't run yet; its first state is committed."""
    state = tmp_path / "edge"
    async with store_proxy(control_site.settings.artifacts_url) as proxy:
        public = proxy.url.rpartition("/")[0]
        scheme, _, rest = public.partition("://")
        public = f"{scheme}://{rest.rpartition('@')[2]}"
        async with control_site.running(artifacts_public_url=public, **settings) as replica:
            await ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 10})
            node = await replica.join("shop-1")
            commits = ScriptedCommits(state, made)
            made_uploader = Uploader(state, commits, bandwidth, jitter=lambda: 0.0)
            async with session(replica, node) as client:
                made_uploader.use(client, node.id)
                await made_uploader.take(INTERVAL)
                yield Backed(replica, proxy, node, state, commits, made_uploader)


async def test_litestream_restores_what_was_committed(backed: Backed, tmp_path: Path) -> None:
    async with running(backed.uploader):
        for _ in range(5):
            await backed.caught_up()
            backed.commits.commit()
        files = await backed.caught_up()
    assert [file.name for file in files] == [file.name for file in sorted(files)]
    spans = [(file.level, file.first, file.last) for file in sorted(files, key=lambda file: file.last)]
    assert spans == [(9, 1, 1), *((0, number, number) for number in range(2, 7))]
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present
    assert LocalFiles(backed.state).waiting() == []
    assert backed.puts == [f"{level}/{first:016x}-{last:016x}.ltx" for level, first, last in spans]
    assert backed.uploader.uploads == 6
    assert backed.uploader.failures == 0


async def test_places_are_asked_for_in_batches(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = ControlClient.backup_places

    async def counted(self: ControlClient, lineage: str, names: list[str]) -> wire.Uploads:
        asked.append(len(names))
        return await real(self, lineage, names)

    monkeypatch.setattr(ControlClient, "backup_places", counted)
    async with running(backed.uploader):
        for _ in range(8):
            await backed.caught_up()
            backed.commits.commit()
        await backed.caught_up()
    assert asked == [1, 64]


async def test_nothing_is_done_while_nobody_writes(backed: Backed) -> None:
    async with running(backed.uploader):
        await backed.caught_up()
        shipments, requests = len(backed.commits.asked), len(backed.proxy.requests)
        first = backed.uploader.state()
        await asyncio.sleep(1.2)
        second = backed.uploader.state()
    assert len(backed.commits.asked) == shipments == 1
    assert len(backed.proxy.requests) == requests
    assert first is not None
    assert second is not None
    assert second.reached_at > first.reached_at
    assert backed.uploader.lag() < 0.1


async def test_the_store_is_away_and_comes_back(backed: Backed, tmp_path: Path) -> None:
    async with running(backed.uploader):
        await backed.caught_up()
        backed.proxy.answers(503, "SlowDown")
        backed.proxy.requests.clear()
        for number in range(2, 8):
            backed.commits.commit()
            await backed.until(lambda number=number: backed.uploader._shipped.last == number)
        await backed.until(lambda: backed.uploader.failures >= 3)
        told = backed.uploader.state()
        assert told is not None
        assert (told.reached, "SlowDown" in told.error) == (1, True), told
        assert told.pending == sum(file.size for file in LocalFiles(backed.state).waiting()) > 0
        lag = backed.uploader.lag()
        await asyncio.sleep(0.2)
        assert backed.uploader.lag() >= lag + 0.2
        backed.proxy.answer = b""
        backed.proxy.requests.clear()
        files = await backed.caught_up()
        assert [name for name in backed.puts if name.startswith("0/")] == sorted(backed.puts)
        told = backed.uploader.state()
        assert told is not None
        assert (told.pending, told.error) == (0, "")
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present


async def test_a_lost_answer_is_success_and_the_file_isnt_sent_again(backed: Backed, tmp_path: Path) -> None:
    async with running(backed.uploader):
        await backed.caught_up()
        backed.proxy.requests.clear()
        backed.proxy.cut = lambda line: line.startswith("PUT ")
        backed.commits.commit()
        await backed.until(lambda: backed.uploader.failures)
        backed.proxy.cut = never
        backed.commits.commit()
        files = await backed.caught_up()
    assert len(backed.puts) == len(set(backed.puts)) == 2
    assert backed.commits.asked == [False] * 3
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present


async def test_a_file_that_is_there_already_is_success(backed: Backed, tmp_path: Path) -> None:
    """As after a kill between the upload and the removal of the local file."""

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LocalFiles, "uploaded", killed)
        with pytest.raises(BaseExceptionGroup):
            await backed.uploader.run()
    (waiting,) = LocalFiles(backed.state).waiting()
    again = Uploader(backed.state, backed.commits, 0, jitter=lambda: 0.0)
    assert again.interval == INTERVAL, "it is remembered"
    # Even one that doesn't ask before it puts.
    again._doubtful = False
    async with session(backed.replica, backed.node) as client:
        again.use(client, backed.node.id)
        backed.uploader = again
        async with running(again):
            backed.commits.commit()
            files = await backed.caught_up()
    assert backed.puts[:2] == [upload_rules.name_of(waiting)] * 2
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present
    assert set(backed.commits.asked) == {False}


async def test_a_foreign_file_under_the_next_name_begins_another_history_loudly(
    backed: Backed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bool] = []
    backed.uploader.tell_soon = lambda: told.append(True)
    async with running(backed.uploader):
        await backed.caught_up()
        before = backed.lineage
        key = objects.key(backed.node.id, before, BackupFile(0, 2, 2))
        foreign = tmp_path / "foreign"
        foreign.write_bytes(b"another disk's")
        with foreign.open("rb") as file:
            await backed.replica.services.store.put_new(key, file)
        backed.commits.commit()
        await backed.until(lambda: backed.lineage != before)
        files = await backed.caught_up()
        state = backed.uploader.state()
    assert state is not None
    assert f"the history {before} was given up" in state.error
    assert told
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "isn't this node's" in line.getMessage()
    assert backed.commits.asked == [False, False, True]
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present
    kept = (await stored(backed.replica.services.store, backed.node.id, before))[before]
    assert kept[BackupFile(0, 2, 2, len(b"another disk's"))] == b"another disk's"


async def test_a_history_that_control_has_ended_gives_way_to_another(backed: Backed, tmp_path: Path) -> None:
    async with running(backed.uploader):
        await backed.caught_up()
        before = backed.lineage
        async with session(backed.replica, backed.node) as twin:
            await twin.backup_places(uuid4().hex, [f"9/{1:016x}-{1:016x}.ltx"])
        backed.commits.commit()
        await backed.until(lambda: backed.lineage != before)
        files = await backed.caught_up()
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present


async def test_one_history_after_the_other_is_given_up_only_so_often(
    backed: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two disks with one identity would else make snapshots of the whole database all the time."""
    async with running(backed.uploader), session(backed.replica, backed.node) as twin:
        for _ in range(2):
            await backed.caught_up()
            backed.uploader._places.clear()
            await twin.backup_places(uuid4().hex, [f"9/{1:016x}-{1:016x}.ltx"])
            backed.commits.commit()
            await backed.until(lambda: backed.uploader._afresh or backed.commits.asked.count(True) == 1)
        await asyncio.sleep(5 * INTERVAL)
        assert backed.commits.asked.count(True) == 1
        assert backed.uploader._afresh
        monkeypatch.setattr(backed.uploader, "_afresh_from", 0.0)
        await backed.until(lambda: backed.commits.asked.count(True) == 2)
        await backed.caught_up()


@pytest.mark.parametrize("settings", [{"presigned_life": 1}])
async def test_a_place_whose_time_is_up_is_renewed(
    backed: Backed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_rules, "valid_until", lambda now, life: now + 1e6)
    monkeypatch.setattr(upload_rules, "RENEWED", 0.0)
    async with running(backed.uploader):
        for _ in range(3):
            await backed.caught_up()
            backed.commits.commit()
        await backed.caught_up()
        await asyncio.sleep(2.5)
        assert backed.uploader._places, "there are places that the store doesn't take any more"
        failures = backed.uploader.failures
        backed.proxy.requests.clear()
        backed.commits.commit()
        files = await backed.caught_up()
    assert len(backed.puts) == 2
    assert len(set(backed.puts)) == 1
    assert backed.uploader.failures == failures + 1
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present


async def test_bytes_that_change_on_the_way_are_refused_and_sent_again(backed: Backed, tmp_path: Path) -> None:
    async with running(backed.uploader):
        await backed.caught_up()
        backed.proxy.change = lambda data: data.replace(b"LTX1", b"LTX2")
        backed.commits.commit()
        await backed.until(lambda: backed.uploader.failures >= 2)
        found = await stored(backed.replica.services.store, backed.node.id)
        assert [file.name for file in found[backed.lineage]] == [f"9/{1:016x}-{1:016x}.ltx"]
        backed.proxy.change = bytes
        files = await backed.caught_up()
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present


@pytest.mark.parametrize("settings", [{"artifacts_delivery": "control"}])
async def test_a_private_store_gets_the_files_through_control(backed: Backed, tmp_path: Path) -> None:
    async with running(backed.uploader):
        for _ in range(3):
            await backed.caught_up()
            backed.commits.commit()
        files = await backed.caught_up()
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present
    assert backed.proxy.requests == []


async def test_an_absent_control_delays_what_has_no_place(backed: Backed, control_site: Site, tmp_path: Path) -> None:
    async with ControlClient("https://127.0.0.1:1", backed.replica.ca, "skn_x") as nowhere:
        backed.uploader.use(nowhere, backed.node.id)
        async with running(backed.uploader):
            await backed.until(lambda: backed.uploader.failures >= 2)
            told = backed.uploader.state()
            assert told is not None
            assert "no connection to 127.0.0.1:1" in told.error
            backed.commits.commit()
            async with session(backed.replica, backed.node) as client:
                backed.uploader.use(client, backed.node.id)
                files = await backed.caught_up()
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present


@pytest.mark.parametrize("bandwidth", [1500])
async def test_a_limit_of_the_bandwidth_is_kept(backed: Backed) -> None:
    began = asyncio.get_running_loop().time()
    async with running(backed.uploader):
        files = await backed.caught_up()
        for _ in range(6):
            backed.commits.commit()
        files = await backed.caught_up()
    took = asyncio.get_running_loop().time() - began
    sent = sum(map(len, files.values()))
    assert sent > 1500
    assert took > (sent - upload_rules.piece(1500)) / 1500


async def test_a_file_that_no_store_takes_in_one_piece_is_named(
    backed: Backed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_rules, "MOST_BYTES", 50)
    async with running(backed.uploader):
        await backed.until(lambda: backed.uploader.failures >= 2)
        told = backed.uploader.state()
    assert told is not None
    assert "is too large to be backed up like this" in told.error
    assert backed.puts == []


@pytest.fixture
def large(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of all files that are made from now on, of which the rest is zeros."""
    real = backed.commits._write

    def write(lineage: str, *given: Any) -> None:
        real(lineage, *given)
        for file in LocalFiles(backed.state).folder.glob(f"{lineage}/*/*.ltx"):
            os.truncate(file, 64 << 20)

    monkeypatch.setattr(backed.commits, "_write", write)
    return 64 << 20


async def test_a_large_file_is_never_in_memory(backed: Backed, large: int) -> None:
    tracemalloc.start()
    try:
        async with running(backed.uploader):
            await backed.until(lambda: not backed.behind())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < large / 2
    (key,) = [item.key async for page in backed.replica.services.store.under("backups/") for item in page]
    assert await backed.replica.services.store.head(key) == large


async def test_an_upload_that_stands_still_is_made_again(
    backed: Backed, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "STALL", 0.3)
    backed.proxy.silent = lambda line: line.startswith("PUT ")
    async with running(backed.uploader):
        await backed.until(lambda: backed.uploader.failures >= 2)
        told = backed.uploader.state()
        assert told is not None
        assert "was taken for 0.3 s" in told.error
        monkeypatch.setattr(uploader, "STALL", 30.0)
        backed.proxy.silent = never
        await backed.until(lambda: not backed.behind())
    assert large


async def test_a_store_that_never_answers_is_asked_again(backed: Backed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader, "ANSWER_TIMEOUT", 0.3)
    async with running(backed.uploader):
        await backed.caught_up()
        backed.proxy.deaf = True
        backed.commits.commit()
        await backed.until(lambda: backed.uploader.failures)
        backed.proxy.deaf = False
        await backed.caught_up()
    assert set(backed.commits.asked) == {False}


async def test_what_waits_is_brought_to_the_store_before_its_time(backed: Backed) -> None:
    await backed.uploader.take(600.0)
    async with running(backed.uploader):
        await backed.caught_up()
        backed.commits.commit()
        position = await backed.uploader.finish()
        assert position == wire.BackupPosition(backed.lineage, 2)
        assert not backed.behind()
        backed.proxy.answers(503, "SlowDown")
        backed.commits.commit()
        assert await backed.uploader.finish() is None


async def test_an_end_drops_what_waits_and_leaves_nothing(backed: Backed) -> None:
    backed.proxy.silent = always
    async with running(backed.uploader):
        await backed.until(lambda: LocalFiles(backed.state).waiting() and backed.proxy.requests)
        await backed.uploader.take(0.0)
        await backed.until(lambda: backed.commits.ended)
        assert backed.uploader.state() is None
        asked = len(backed.commits.asked)
        backed.commits.commit()
        await asyncio.sleep(5 * INTERVAL)
        assert len(backed.commits.asked) == asked
        assert not (backed.state / uploader.FILE).exists()
        assert LocalFiles(backed.state).waiting() == []
        assert Uploader(backed.state, backed.commits, 0).interval == 0
        # It may be turned on again.
        backed.proxy.silent = never
        await backed.uploader.take(INTERVAL)
        await backed.caught_up()


async def test_a_machine_that_is_another_node_now_begins_with_a_snapshot(backed: Backed, tmp_path: Path) -> None:
    async with running(backed.uploader):
        backed.commits.commit()
        await backed.caught_up()
        before = backed.lineage
        backed.node = await backed.replica.join("shop-2")
        async with session(backed.replica, backed.node) as client:
            backed.uploader.use(client, backed.node.id)
            await backed.until(lambda: backed.lineage != before)
            files = await backed.caught_up()
            backed.commits.commit()
            files = await backed.caught_up()
    assert set(await stored(backed.replica.services.store, backed.node.id)) == {backed.lineage}
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present
    again = Uploader(backed.state, backed.commits, 0)
    async with session(backed.replica, backed.node) as client:
        again.use(client, backed.node.id)
        assert not again._afresh


async def test_a_disk_that_is_lost_lacks_an_interval_at_most(backed: Backed, tmp_path: Path) -> None:
    """The lag says what a lost disk loses."""
    async with running(backed.uploader):
        await backed.caught_up()
        backed.commits.commit()
        files = await backed.caught_up()
        state = backed.uploader.state()
    shutil.rmtree(backed.state)
    assert state is not None
    assert state.reached == max(file.last for file in files)
    assert (await restored(files, tmp_path / "restored")).read_bytes() == backed.commits.present
