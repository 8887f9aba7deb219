"""A COMMIT that the disk fails: nobody is told that nothing was changed where a later start says otherwise."""

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from edge_runtime.errors import SyncFailed
from edge_runtime.sql import database
from tests.guests.build import guest
from tests.support.edge import node
from tests.support.edge_process import FrontProcess, front_process
from tests.support.failing_calls import ALWAYS, FailingCalls

LOG = "/db/skerry.db-wal"
FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"}), "reader": (guest("sql"), {"sql": "read"})}
NOTE = b'{"sql":"INSERT INTO notes (text) VALUES (1)"}'
NOTES = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"]


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FailingCalls:
    """Followed by the processes of nodes that are started from now on."""
    made = FailingCalls(tmp_path / "failing")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `state` is a copy of."""
    path = tmp_path_factory.mktemp("made") / "state"
    async with node(path) as edge:
        await edge.release(FUNCTIONS, NOTES)
    return path


@pytest.fixture
def state(made: Path, tmp_path: Path) -> Path:
    """The state directory of a node whose release has functions that keep notes."""
    # A compilation's folder may be there for a moment after the node's end.
    shutil.copytree(made, tmp_path / "state", ignore=shutil.ignore_patterns(".compile-*"))
    return tmp_path / "state"


@contextlib.asynccontextmanager
async def killed_at_the_end(state: Path) -> AsyncIterator[FrontProcess]:
    """A node that has no chance to put anything in order at its end."""
    async with front_process(state) as edge:
        yield edge
        os.kill(edge.pid, signal.SIGKILL)


async def insert(edge: FrontProcess, text: str, words: int = 1) -> tuple[int, str]:
    """Status and code ("" for an answer of the function's)."""
    statement = {"sql": "INSERT INTO notes (text) VALUES (?)", "params": [text * words]}
    status, body = await edge.call("sql", orjson.dumps(statement))
    return status, "" if status == 200 else orjson.loads(body)["code"]


async def notes(edge: FrontProcess) -> set[str]:
    status, body = await edge.call("reader", b'{"sql":"SELECT substr(text, 1, 3) FROM notes"}')
    assert status == 200, body
    return {row[0] for row in orjson.loads(body)["rows"]}


async def after_a_restart(state: Path) -> set[str]:
    async with killed_at_the_end(state) as edge:
        return await notes(edge)


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
@pytest.mark.parametrize("words", [1, 20_000])
async def test_what_a_call_is_told_of_a_failed_commit_stays_true(
    state: Path, failing: FailingCalls, call: str, words: int
) -> None:
    async with killed_at_the_end(state) as edge:
        assert await insert(edge, "one", words) == (200, "")
        rule = failing.fail(call, LOG, errno.EIO)
        assert await insert(edge, "two", words) == (507, "disk_failed")
        assert rule.concerned == 1
        assert await notes(edge) == {"one"}
    assert await after_a_restart(state) == {"one"}


async def test_a_failed_commit_is_undone_before_the_next_one(state: Path, failing: FailingCalls) -> None:
    async with killed_at_the_end(state) as edge:
        assert await insert(edge, "one") == (200, "")
        failing.fail("fsync", LOG, errno.EIO)
        assert await insert(edge, "two") == (507, "disk_failed")
        assert await insert(edge, "six") == (200, "")
        assert await notes(edge) == {"one", "six"}
    assert await after_a_restart(state) == {"one", "six"}


async def test_where_undoing_fails_too_nobody_is_told_that_nothing_was_changed(
    state: Path, failing: FailingCalls
) -> None:
    async with killed_at_the_end(state) as edge:
        rules = [failing.fail(call, LOG, errno.EIO, times=ALWAYS) for call in ("fsync", "ftruncate")]
        assert await insert(edge, "one") == (502, "commit_unknown")
        for rule in rules:
            rule.end()
        # As unknown as it was: the next one settles it.
        assert await insert(edge, "two") == (200, "")
        assert await notes(edge) == {"two"}
    assert await after_a_restart(state) == {"two"}


@pytest.mark.parametrize("fails", ["the sync", "undoing too"])
async def test_a_release_whose_commit_failed(state: Path, failing: FailingCalls, fails: str) -> None:
    """The old one serves on, and the one that the file has serves after a restart, without a network."""
    async with node(state, start_wait=20.0) as edge:
        await edge.call("sql", NOTE)
        times = 1 if fails == "the sync" else ALWAYS
        rule = failing.fail("fsync", LOG, errno.EIO, first=1, times=times)
        with pytest.raises(SyncFailed) as failed:
            await edge.release(FUNCTIONS)
        assert failed.value.code == "disk_failed"
        assert rule.concerned >= 1
        assert ("Nothing was changed" in failed.value.message) == (fails == "the sync")
        assert (await edge.call("reader", b'{"sql":"SELECT 1"}'))[0] == 200
        rule.end()
        # Once the disk is well, the next attempt is as good as the first.
        if fails == "the sync":
            await edge.release({**FUNCTIONS, "echo": guest("echo")})
    async with node(state) as edge:
        assert edge.front.manager.error() is None
        release = edge.front.manager.release
        assert release is not None
        assert release.number == (3 if fails == "the sync" else 1)
        assert (await edge.call("reader", b'{"sql":"SELECT 1"}'))[0] == 200


async def test_a_release_that_came_back_is_served(tmp_path: Path, state: Path, failing: FailingCalls) -> None:
    """The disk had kept it after all, as a start finds: that is no other release than one that was announced."""
    async with node(state) as edge:
        # The log is begun: from here on a COMMIT syncs once, after what the applier makes sure of.
        await edge.call("sql", NOTE)
        for call, first in (("fsync", 1), ("ftruncate", 0)):
            failing.fail(call, LOG, errno.EIO, first=first, times=ALWAYS)
        with pytest.raises(SyncFailed) as failed:
            await edge.release(FUNCTIONS)
        assert failed.value.code == "disk_failed"
        # What a start after a loss of power finds: the log as it is, without its index.
        shutil.copytree(state, tmp_path / "copy", ignore=shutil.ignore_patterns("*-shm", "*.sock", ".compile-*"))
    state = tmp_path / "copy"
    with contextlib.closing(database.connect(state / database.FILE)) as opened:
        found = database.read_release(opened)
    assert found is not None
    assert found.number == 2, "the test wants the release to come back"
    async with node(state) as edge:
        assert edge.front.manager.error() is None
        assert edge.front.manager.release is not None
        assert edge.front.manager.release.number == 2
