"""A node whose disk is full: it starts and serves for reading, and an operator can make room."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from edge_runtime import aot_cache, front
from edge_runtime.cli import status as status_command
from edge_runtime.release import stored_release
from edge_runtime.state import KEPT_BY_A_START, RESERVE, RESERVE_BYTES
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.support.edge import node, until

pytestmark = [
    pytest.mark.never_retry,
    pytest.mark.skipif(bool(os.geteuid()), reason="root alone can mount a small disk"),
]

FUNCTIONS = {"sql": (guest("sql"), {"sql": "write"}), "reader": (guest("sql"), {"sql": "read"})}
NOTES = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, data BLOB)"]
INSERT = b'{"sql": "INSERT INTO notes (data) VALUES (zeroblob(20000))"}'
COUNT = b'{"sql": "SELECT count(*) FROM notes"}'


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The place where a disk of 48 MiB is mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte of the disk free; return the file that takes it."""
    file = disk / "of others"
    # A start would remove these.
    for left in (disk / "state" / "aot").glob(f"{aot_cache.TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True)
    with file.open("ab", buffering=0) as opened:
        for size in (1 << 16, 1):
            try:
                while True:
                    opened.write(bytes(size))
            except OSError:
                pass
    return file


async def test_a_node_on_a_full_disk_starts_serves_and_can_be_given_room(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "RESERVE_PERIOD", 0.1)
    state, spare = disk / "state", disk / "state" / RESERVE
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
        for _ in range(20):
            assert (await edge.call("sql", INSERT))[0] == 200
        await until(lambda: spare.exists() and spare.stat().st_blocks * 512 >= RESERVE_BYTES)
    filler = fill(disk)
    async with node(state) as edge:
        assert spare.stat().st_size == KEPT_BY_A_START
        assert orjson.loads((await edge.call("reader", COUNT))[2])["rows"] == [[20]]
        fill(disk)
        while (said := await edge.call("sql", INSERT))[0] == 200:
            fill(disk)
        assert (said[0], orjson.loads(said[2])["code"]) == (507, "disk_full")
        assert orjson.loads((await edge.call("reader", COUNT))[2])["rows"][0][0] >= 20
        shown = status_command.render(edge.front.status())
        assert "its disk is full (disk_full): calls that write fail" in shown
        delete = ("sql", "DELETE FROM notes", "--write", "--reason", "room", "--state", str(state))
        code, out, err = await command(*delete)
        assert (code, err) == (0, ""), out
        assert (await edge.call("sql", INSERT))[0] == 200
        filler.unlink()
        await until(lambda: spare.stat().st_blocks * 512 >= RESERVE_BYTES)


async def test_a_node_that_has_no_room_at_all_waits_for_it(
    disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after two starts on a full disk."""
    monkeypatch.setattr(stored_release, "FULL_PAUSE", 0.05)
    state = disk / "state"
    async with node(state) as edge:
        await edge.release(FUNCTIONS, NOTES)
    (state / RESERVE).unlink()
    filler = fill(disk)

    async def free() -> None:
        await until(lambda: "nothing is served until there is room" in caplog.text)
        filler.unlink()

    freeing = asyncio.ensure_future(free())
    async with node(state) as edge:
        await freeing
        assert orjson.loads((await edge.call("reader", COUNT))[2])["rows"] == [[0]]
