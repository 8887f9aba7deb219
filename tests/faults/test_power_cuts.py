"""A node whose power fails: of everything that it wrote, a state of the disk is built for many moments and choices of
what wasn't synced yet. From each the node starts, and nothing that was acknowledged is missing.

SKERRY_TEST_CUTS says how many states (`just faults` tries 1,000), a twentieth of them by the whole program.
"""

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from control.local.pki import Pki
from tests.guests.build import guest
from tests.support import power
from tests.support.agents import Control, running_control
from tests.support.deadlines import deadline
from tests.support.edge_process import front_process
from tests.support.node_process import LIMIT, NodeProcess
from tests.support.power_check import Expected
from tests.support.services import ServerUrls, drop_bucket, fresh_bucket

CUTS = int(os.environ.get("SKERRY_TEST_CUTS", "40"))
WHOLE = max(3, CUTS // 20)
"""States that are started by the whole program."""
SEED = int(os.environ.get("SKERRY_TEST_SEED", "1"))


@dataclass(frozen=True)
class Recorded:
    """A node's life, with what was acknowledged in it."""

    root: Path
    records: list[power.Record]


class Node(NodeProcess):
    """A node whose processes record what they write, and which records what is acknowledged."""

    def __init__(self, recorder: power.Recorder, control: Control, database_url: str) -> None:
        # Calls wait as long as a busy machine needs for a release.
        patient = {"SKERRY_EDGE_QUEUE_WAIT": "60"}
        super().__init__(control, recorder.folder, {**recorder.environment(), **patient})
        self._recorder = recorder
        self._database_url = database_url
        self._written = 0

    @asynccontextmanager
    async def running(self, *, rotate_days: int = 30, kill: bool = False) -> AsyncIterator[None]:
        """Run the node; at the end of the block it is ended in order, or killed."""
        assert await self.start(rotate_days=rotate_days), self.log.read_text()
        try:
            yield
        finally:
            await self.end(kill=kill)

    async def join(self) -> None:
        await super().join()
        self._recorder.answered("joined")

    async def at_release(self, number: int) -> None:
        await super().at_release(number)
        self._recorder.answered(f"release {number}")

    async def write(self, times: int) -> None:
        """Have rows written by calls of which every fifth fails behind its INSERT."""
        for number in range(self._written, self._written + times):
            path = "/functions/sql" + ("?status=500" if number % 5 == 4 else "")
            row = f"{number:06}" + "x" * 900
            body = msgspec.json.encode({"sql": "INSERT INTO written VALUES (?)", "params": [row]})
            async with self.http.post(path, data=body) as answer:
                said = await answer.text()
                assert answer.status == (500 if number % 5 == 4 else 200), said
            assert "error" not in said, said
            self._recorder.answered(f"{'undone' if number % 5 == 4 else 'row'} {row}")
        self._written += times

    async def rotated(self) -> None:
        """Wait until the node uses its second credential."""
        connection = await asyncpg.connect(self._database_url)
        try:
            async with deadline(LIMIT):
                query = "SELECT id::text FROM credentials WHERE replaces IS NOT NULL AND first_used_at IS NOT NULL"
                while (found := await connection.fetch(query)) == []:
                    await asyncio.sleep(0.02)
        finally:
            await connection.close()
        self._recorder.answered(f"credential {found[0]['id']}")


@pytest.fixture(scope="module")
def recorded(services: ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One node's life: it joins, is released to, writes rows, gets another credential, is killed and ended."""
    with asyncio.Runner() as runner:
        return runner.run(_record(services, pki, tmp_path_factory.mktemp("power")))


async def _record(services: ServerUrls, pki: Pki, folder: Path) -> Recorded:
    root = folder / "node"
    root.mkdir()
    recorder = power.Recorder(root, folder / "log", await asyncio.to_thread(power.shared_library))
    database_url = await services.fresh_database()
    bucket_url = await fresh_bucket(services.artifacts_url)
    try:
        async with running_control(database_url, bucket_url, pki) as control:
            await _live(Node(recorder, control, database_url))
    finally:
        await drop_bucket(bucket_url)
        await services.give_back(database_url)
    return Recorded(root, recorder.read())


async def _live(node: Node) -> None:
    await node.join()
    node.functions["sql"] = await node.control.push("sql", guest("sql"), {"sql": "write"})
    async with node.running(kill=True):
        await node.at_release(await node.release())
        await node.write(60)
        second = await node.release()
        await node.write(20)
        await node.at_release(second)
    async with node.running(rotate_days=0):
        await node.rotated()
        await node.write(40)
        await node.at_release(await node.release())
        await node.write(20)
    async with node.running():
        await node.at_release(3)
        await node.write(20)


def expected(state: Path, records: list[power.Record]) -> Expected:
    """Return what has to be there after these records."""
    found = Expected(str(state))
    for record in records:
        if record.kind != "A":
            continue
        what, _, rest = record.data.decode().partition(" ")
        match what:
            case "joined":
                found.joined = True
            case "release":
                found.release = int(rest)
            case "credential":
                found.credential = rest
            case "row":
                found.rows.add(rest)
            case "undone":
                found.undone.add(rest)
    return found


def moments(recorded: Recorded, count: int, choice: random.Random) -> list[int]:
    """Return how many records each cut has before it, in order; syncs and answers are where faults show."""
    marked = [at + 1 for at, record in enumerate(recorded.records) if record.kind in "SARCU"]
    return sorted(choice.choice(marked) - choice.randint(0, 1) for _ in range(count))


def cuts(recorded: Recorded, into: Path, count: int, seed: int) -> Any:
    """Build states one after the other, each in an empty folder `into`; yield what has to be there, and a name."""
    choice = random.Random(seed)
    disk, played = power.Disk(recorded.root), 0
    for moment in moments(recorded, count, choice):
        for record in recorded.records[played:moment]:
            disk.play(record)
        played = moment
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir()
        # Compiled code is made again where it isn't there, or isn't what its digest says.
        disk.write(into, choice, without=("aot",))
        for shared_memory in into.rglob("*-shm"):
            # Not synced by anybody, and made anew by the first who opens the file.
            shared_memory.write_bytes(choice.randbytes(32768))
        yield expected(into / "edge", recorded.records[:moment]), f"seed {seed}, after record {moment}"


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_and_the_node_starts(recorded: Recorded, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.power_check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as checker:
        assert checker.stdin is not None
        assert checker.stdout is not None
        failures = []
        for wanted, name in cuts(recorded, tmp_path / "left", CUTS, SEED):
            checker.stdin.write(msgspec.json.encode(wanted) + b"\n")
            checker.stdin.flush()
            line = checker.stdout.readline()
            assert line, f"{name}: the start ended its process"
            failures += [f"{name}: {text}" for text in msgspec.json.decode(line, type=list[str])]
        checker.stdin.close()
    assert not failures, "\n".join(failures[:20])


@pytest.mark.timeout(600)
async def test_the_whole_program_starts_and_serves(recorded: Recorded, tmp_path: Path) -> None:
    served = 0
    for wanted, name in cuts(recorded, tmp_path / "left", WHOLE, SEED + 1):
        if not wanted.release:
            continue
        async with front_process(Path(wanted.state)) as front:
            status, said = await front.call("sql", b'{"sql": "SELECT id FROM written"}')
            assert status == 200, (name, said)
            rows = {row[0] for row in msgspec.json.decode(said)["rows"]}
            assert wanted.rows <= rows, name
            assert not wanted.undone & rows, name
            served += 1
    assert served


def test_what_is_not_synced_is_lost(recorded: Recorded, tmp_path: Path) -> None:
    """The test of the test: without its syncs the same record loses what was acknowledged."""
    careless = replace(recorded, records=[record for record in recorded.records if record.kind != "S"])
    # Of so many that it isn't by chance that each has the state directory.
    lost = [wanted for wanted, _ in cuts(careless, tmp_path / "left", 80, SEED) if not Path(wanted.state).exists()]
    assert lost
