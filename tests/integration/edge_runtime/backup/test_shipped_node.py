"""A node whose database is shipped by its own checkpointer, behind its fence: calls, releases, kills, bad disks."""

import asyncio
import contextlib
import errno
import filecmp
import sqlite3
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from control.protocol import wire
from edge_runtime import wal
from edge_runtime.backup.local_files import SNAPSHOTS, LocalFiles, NotShipped
from edge_runtime.release import checkpoint_schedule
from tests.guests.build import guest
from tests.support.deadlines import scaled
from tests.support.edge import Node, node, until
from tests.support.failing_calls import ALWAYS, FailingCalls
from tests.support.shipping import restore

pytestmark = pytest.mark.never_retry

FUNCTIONS = {
    "sql": (guest("sql"), {"sql": "write", "time_limit_ms": 8000}),
    "reader": (guest("sql"), {"sql": "read", "time_limit_ms": 8000, "concurrency": 4}),
}
NOTES = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, data BLOB)"]
NOTED = "SELECT id, hex(substr(data, 1, 16)) AS begins, length(data) AS bytes FROM notes"
SEEN = f"CREATE TABLE seen AS {NOTED}"
"""Keeps, in a release, what there was at its beginning."""
LARGE = (
    "CREATE TABLE large AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) "
    "SELECT randomblob(1048576) AS data FROM n"
)
FOLDER = "/backup/"
LOG = "/db/skerry.db-wal"


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FailingCalls:
    made = FailingCalls(tmp_path / "failing")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


class Store:
    """Where the files of a node's backup go."""

    def __init__(self, path: Path) -> None:
        self.local = LocalFiles(path / "state")
        self.folder = path / "store"
        self.out = path / "restored.db"

    @property
    def lineage(self) -> str:
        history = self.local.lineage()
        assert history is not None
        return history.lineage

    def upload(self) -> None:
        for one in self.local.waiting():
            there = self.folder / one.lineage / "ltx" / str(one.level) / one.path.name
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(one.path.read_bytes())
            self.local.uploaded(one)

    def snapshots(self) -> int:
        return len(list(self.folder.glob(f"*/ltx/{SNAPSHOTS}/*")))

    def restored(self, at: int | None = None) -> int:
        """The number of notes in what Litestream restores."""
        self.upload()
        restore(self.folder / self.lineage, self.out, at)
        return count(self.out)


def count(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(opened.execute("SELECT count(*) FROM notes").fetchone()[0])


def dumped(database: Path) -> list[str]:
    """All that a database says, also of its release."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return list(opened.iterdump())


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return opened.execute(query).fetchall()


def other_than_notes(database: Path) -> list[str]:
    return [line for line in dumped(database) if not line.startswith('INSERT INTO "notes"')]


async def write(edge: Node, size: int = 1000) -> tuple[int, str]:
    statement = {"sql": "INSERT INTO notes (data) VALUES (zeroblob(?))", "params": [size]}
    status, _, body = await edge.call("sql", orjson.dumps(statement))
    return status, "" if status == 200 else orjson.loads(body)["code"]


async def test_a_node_that_stops_starts_and_loses_its_checkpointer_writes_one_history(tmp_path: Path) -> None:
    state, store = tmp_path / "state", Store(tmp_path)
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
        first = await edge.front.checkpoints.ship()
        assert (first.last, first.whole, first.error) == (1, True, "")
        for number in range(1, 4):
            assert await write(edge) == (200, "")
            assert (await edge.front.checkpoints.ship()).last == number + 1
            assert store.restored() == number
        child = edge.front.checkpoints._child
        assert child is not None
        child.kill()
        assert await write(edge) == (200, "")
        assert (await edge.front.checkpoints.ship()).last == 5
        assert await write(edge) == (200, "")
    # The stop has shipped what was left.
    assert not wal.has_log(state / wal.FILE)
    assert store.restored() == 5
    async with node(state) as edge:
        assert await write(edge) == (200, "")
        found = await edge.front.checkpoints.ship()
        assert (found.last, found.error) == (7, "")
    assert store.restored() == 6
    assert store.snapshots() == 1


async def test_the_log_begins_anew_while_calls_write_and_all_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_schedule, "READERS_WAIT", 60.0)
    store, at = Store(tmp_path), {}
    async with node(tmp_path / "state", workers=4, wal_limit=32 << 20) as edge:
        await edge.release(FUNCTIONS, NOTES)
        await edge.front.checkpoints.ship()
        written = 0
        while edge.front.checkpoints.made < 4:
            assert await asyncio.gather(write(edge, 1 << 20), write(edge, 50_000)) == [(200, "")] * 2
            written += 2
            if written % 6 == 0:
                at[(await edge.front.checkpoints.ship()).last] = written
            assert written < 800, "the log grows and grows"
        last = await edge.front.checkpoints.ship()
        assert not last.error
        # It stays: nothing may be moved that isn't shipped.
        assert edge.front.checkpoints._child is not None
    assert store.restored() == written
    for transaction, number in at.items():
        assert store.restored(transaction) == number
    assert store.snapshots() == 1


async def test_a_database_that_is_not_backed_up_has_no_files(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, NOTES)
        for _ in range(6):
            assert await write(edge, 1 << 20) == (200, "")
        await until(lambda: edge.front.checkpoints.made > 0)
        assert edge.front.manager.boundary is None
    assert list((tmp_path / "state" / wal.BACKUP).iterdir()) == []


async def test_a_backup_that_ends_leaves_no_files_and_holds_nothing(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, NOTES)
        first = await edge.front.checkpoints.ship()
        await edge.front.checkpoints.end_backup()
        assert not LocalFiles(tmp_path / "state").is_on
        for _ in range(6):
            assert await write(edge, 1 << 20) == (200, "")
        await until(lambda: edge.front.checkpoints.made > 0)
        assert LocalFiles(tmp_path / "state").waiting() == []
        second = await edge.front.checkpoints.ship()
        assert second.lineage != first.lineage
        assert (second.last, second.whole) == (1, True)


async def test_a_release_says_where_it_begins(tmp_path: Path) -> None:
    """While calls write: what is restored there is the database as it was before, and after it the release's."""
    store = Store(tmp_path)
    async with node(tmp_path / "state", workers=4) as edge:
        await edge.release(FUNCTIONS, NOTES)
        await edge.front.checkpoints.ship()
        stopping, written = False, 0

        async def load() -> None:
            nonlocal written
            while not stopping:
                assert await write(edge) == (200, "")
                written += 1

        loads = [asyncio.ensure_future(load()) for _ in range(4)]
        boundaries = []
        for number in range(3):
            before = written
            await until(lambda before=before: written > before + 10)
            # The change tells how many notes there were at its beginning.
            await edge.release(FUNCTIONS, [f"CREATE TABLE seen{number} AS SELECT count(*) AS notes FROM notes"])
            boundary = edge.front.manager.boundary
            assert isinstance(boundary, wire.BackupPosition)
            boundaries.append(boundary)
        stopping = True
        await asyncio.gather(*loads)
        end = await edge.front.checkpoints.ship()
        assert end.last > boundaries[-1].transaction
    store.upload()
    assert store.snapshots() == 1
    database = tmp_path / "state" / wal.FILE
    with contextlib.closing(sqlite3.connect(database)) as opened:
        seen = [opened.execute(f"SELECT notes FROM seen{number}").fetchone()[0] for number in range(3)]
    for number, boundary in enumerate(boundaries):
        assert boundary.lineage == store.lineage
        assert store.restored(boundary.transaction) == seen[number]
        tables = dumped(store.out)
        assert f"seen{number - 1}" in "\n".join(tables) or number == 0
        assert f"seen{number}" not in "\n".join(tables)
        # The next one has the release, and nothing else before it.
        store.restored(boundary.transaction + 1)
        assert f"CREATE TABLE seen{number}" in "\n".join(dumped(store.out))
    assert store.restored() == written


async def test_a_large_release_says_where_it_begins_while_readers_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call fails or is forgotten, and the log, which has the release's 200 MB, is short again while calls go on."""
    for name in ("READERS_WAIT", "TURN_LIMIT", "BOUNDARY_LIMIT"):
        monkeypatch.setattr(checkpoint_schedule, name, 60.0)
    store, longest = Store(tmp_path), 0.0
    limit = 16 << 20
    async with node(tmp_path / "state", workers=4, wal_limit=limit) as edge:
        checkpoints = edge.front.checkpoints
        await edge.release(FUNCTIONS, NOTES)
        await checkpoints.ship()
        stopping, read, written = False, 0, 0

        async def call(path: str, statement: str) -> None:
            nonlocal longest
            began = time.monotonic()
            status, _, body = await edge.call(path, orjson.dumps({"sql": statement}))
            assert status == 200, body
            longest = max(longest, time.monotonic() - began)

        async def reads() -> None:
            nonlocal read
            while not stopping:
                await call("reader?sleep=100", "SELECT count(*) FROM notes")
                read += 1

        async def writes() -> None:
            nonlocal written
            while not stopping:
                await call("sql", "INSERT INTO notes (data) VALUES (randomblob(50000))")
                written += 1

        loads = [asyncio.ensure_future(load()) for load in (reads, reads, reads, writes, writes)]

        def failed() -> bool:
            return any(load.done() for load in loads)

        await until(lambda: failed() or (read > 5 and written > 20))
        earlier = await checkpoints.ship()
        await edge.release(FUNCTIONS, [SEEN, LARGE])
        boundary = edge.front.manager.boundary
        made, before = checkpoints.made, (read, written)
        await until(lambda: failed() or (checkpoints.made > made and checkpoints.size < limit))
        assert read > before[0]
        assert written > before[1]
        stopping = True
        await asyncio.gather(*loads)
        end = await checkpoints.ship()
        assert end.whole
        assert longest < scaled(60.0)
    assert isinstance(boundary, wire.BackupPosition)
    assert boundary.lineage == store.lineage == earlier.lineage
    assert store.restored() == written
    assert store.snapshots() == 1
    database = tmp_path / "state" / wal.FILE
    assert filecmp.cmp(store.out, database, shallow=False)
    seen = rows(database, "SELECT id, begins, bytes FROM seen ORDER BY id")
    assert rows(database, "SELECT count(*), sum(length(data)) FROM large") == [(200, 200 << 20)]
    # The last one before the release: all of those notes, and else what there was before it.
    assert store.restored(boundary.transaction) == len(seen)
    assert rows(store.out, f"{NOTED} ORDER BY id") == seen
    others = other_than_notes(store.out)
    store.restored(earlier.last)
    assert others == other_than_notes(store.out)
    # The next one has all of the release, and perhaps what calls wrote before it was made.
    assert store.restored(boundary.transaction + 1) >= len(seen)
    assert rows(store.out, f"{NOTED} ORDER BY id")[: len(seen)] == seen
    assert rows(store.out, "SELECT count(*), sum(length(data)) FROM large") == [(200, 200 << 20)]


async def test_a_release_goes_on_where_its_boundary_cannot_be_shipped(
    tmp_path: Path, failing: FailingCalls, caplog: pytest.LogCaptureFixture
) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, NOTES)
        await edge.front.checkpoints.ship()
        assert await write(edge) == (200, "")
        rules = [failing.fail("fsync", FOLDER, errno.EIO, times=ALWAYS)]
        await edge.release(FUNCTIONS, ["CREATE TABLE more (id INTEGER PRIMARY KEY)"])
        assert edge.front.manager.boundary is None
        assert "can't tell where a release begins" in caplog.text
        for rule in rules:
            rule.end()
        assert (await edge.front.checkpoints.ship()).whole
        await edge.release(FUNCTIONS, ["CREATE TABLE others (id INTEGER PRIMARY KEY)"])
        assert edge.front.manager.boundary is not None


async def test_a_disk_that_fails_the_backup_holds_the_log_back_to_half_of_its_limit(
    tmp_path: Path, failing: FailingCalls, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the history is given up, and goes on with a snapshot once the disk works; calls never notice."""
    store = Store(tmp_path)
    async with node(tmp_path / "state", wal_limit=16 << 20) as edge:
        await edge.release(FUNCTIONS, NOTES)
        first = await edge.front.checkpoints.ship()
        store.upload()
        rule = failing.fail("fsync", FOLDER, errno.EIO, times=ALWAYS)
        written, highest = 0, 0
        while edge.front.checkpoints.made == 0:
            assert await write(edge, 1 << 20) == (200, "")
            written += 1
            highest = max(highest, edge.front.checkpoints.size)
            assert written < 200, "nothing was given up"
        assert highest >= 8 << 20
        assert store.local.waiting() == []
        assert rule.concerned
        with contextlib.suppress(NotShipped):
            assert not (await edge.front.checkpoints.ship()).whole
        rule.end()

        async def whole() -> bool:
            with contextlib.suppress(NotShipped):
                return (await edge.front.checkpoints.ship()).whole
            return False

        while not await whole():
            await asyncio.sleep(0.2)
        assert f"after transaction {first.last}" in caplog.text
        assert f"after transaction {first.last}" in edge.front.checkpoints.backup_error
        assert store.restored() == written
        assert store.snapshots() == 2
        await edge.front.checkpoints.ship()
        assert edge.front.checkpoints.backup_error == ""
        assert await write(edge) == (200, "")


async def test_a_commit_that_the_disk_fails_is_in_no_file(tmp_path: Path, failing: FailingCalls) -> None:
    store = Store(tmp_path)
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS, NOTES)
        await edge.front.checkpoints.ship()
        assert await write(edge) == (200, "")
        failing.fail("fsync", LOG, errno.EIO)
        assert await write(edge, 200_000) == (507, "disk_failed")
        one = await edge.front.checkpoints.ship()
        assert store.restored(one.last) == 1
        assert await write(edge) == (200, "")
        two = await edge.front.checkpoints.ship()
        assert store.restored(two.last) == 2
        assert store.restored(one.last) == 1
    assert store.restored() == 2
    assert store.snapshots() == 1
