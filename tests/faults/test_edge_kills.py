"""Workers and the zygote are killed while calls run: none hangs, none gets another's answer, none runs twice.

SKERRY_TEST_KILLS says how many kills. The front is killed in `test_interrupted_syncs.py` and `test_kill_anywhere.py`.
"""

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path

import orjson
import pytest

from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until

KILLS = int(os.environ.get("SKERRY_TEST_KILLS", "5"))
TALLY = "CREATE TABLE done (name TEXT)"
ENDED = {(502, "worker_crashed"), (502, "commit_unknown")}


class Clients:
    """Callers that never stop; each call has a name of its own, echoed by one function and written by another."""

    def __init__(self, edge: Node, number: int) -> None:
        self.edge = edge
        self.acknowledged: list[str] = []
        self.unknown: set[str] = set()
        self.ended = 0
        self.calls = 0
        self._stop = False
        self._tasks = [asyncio.ensure_future(self._one(k)) for k in range(number)]

    async def _one(self, number: int) -> None:
        turn = 0
        while not self._stop:
            turn += 1
            name = f"{number}-{turn}"
            self.calls += 1
            async with deadline(90):
                if number % 2:
                    status, _, body = await self.edge.call("echo", name.encode())
                    good = body == name.encode()
                else:
                    insert = orjson.dumps({"sql": "INSERT INTO done VALUES (?)", "params": [name]})
                    status, _, body = await self.edge.call("sql", insert)
                    good = status == 200 and orjson.loads(body)["changes"] == 1
                    if status == 200:
                        self.acknowledged.append(name)
            if status == 200:
                assert good, body
            else:
                self.ended += 1
                code = orjson.loads(body)["code"]
                assert (status, code) in ENDED, body
                if code == "commit_unknown":
                    self.unknown.add(name)

    async def stop(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def check(self) -> None:
        """What was acknowledged is there once, and nothing twice or that nobody can explain."""
        _, _, body = await self.edge.call("sql", b'{"sql":"SELECT name FROM done"}')
        there = [row[0] for row in orjson.loads(body)["rows"]]
        assert len(there) == len(set(there))
        assert set(self.acknowledged) <= set(there)
        assert set(there) - set(self.acknowledged) <= self.unknown


FUNCTIONS = {"echo": guest("echo"), "sql": (guest("sql"), {"sql": "write"})}


async def test_workers_are_killed_at_random_under_load(tmp_path: Path) -> None:
    async with node(tmp_path / "state", queue_wait=60.0) as edge:
        await edge.release(FUNCTIONS, [TALLY])
        clients = Clients(edge, 16)
        chance = random.Random(7)
        while edge.front.pool.deaths < 2 * KILLS:
            begun = clients.calls
            await asyncio.sleep(chance.uniform(0.0, 0.04))
            await until(edge.workers)
            # However slow calls are, so many more of them are made than the kill below can end.
            await until(lambda begun=begun: clients.calls > begun + 6)
            for pid in list(edge.workers())[: chance.randint(1, 2)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await until(lambda: len(edge.workers()) == 2)
        await clients.stop()
        assert clients.calls > 2 * clients.ended > 0
        await clients.check()


async def test_the_zygote_is_killed_under_load(tmp_path: Path) -> None:
    # Calls wait for a new zygote as long as that takes to start.
    async with node(tmp_path / "state", queue_wait=60.0) as edge:
        await edge.release(FUNCTIONS, [TALLY])
        clients = Clients(edge, 16)
        kills = max(2, KILLS // 10)
        for _ in range(kills):
            seen = edge.front.processes.pid
            await asyncio.sleep(0.1)
            os.kill(seen, signal.SIGKILL)
            await until(lambda seen=seen: edge.front.processes.pid not in (0, seen) and len(edge.workers()) == 2)
        await clients.stop()
        # Each time at most the call that each of the two workers ran.
        assert clients.ended <= 2 * kills
        await clients.check()


async def test_a_worker_that_is_stopped_is_ended_and_its_calls_go_on(tmp_path: Path) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        # A worker that has been born anew, and is kept from running, has that much time, too.
        await edge.release({"echo": (guest("echo"), {"time_limit_ms": 3000})})
        (pid,) = edge.workers()
        os.kill(pid, signal.SIGSTOP)
        # It had not started: it is dispatched again.
        assert (await edge.call("echo", b"later"))[2] == b"later"
        assert edge.workers() != {pid}


async def test_those_that_wait_behind_a_loop_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was short until now loops: the calls behind it in its worker only waited."""
    # However slow the machine is.
    monkeypatch.setattr("edge_runtime.dispatch.served_functions.SHORT", 60.0)
    wasm = guest("slow")
    functions = {"slow": (wasm, {"sql": "read", "time_limit_ms": 1500}), "echo": guest("echo")}
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release(functions, ["CREATE TABLE generation (number INTEGER)", "INSERT INTO generation VALUES (1)"])
        for _ in range(5):
            assert (await edge.call("slow?ms=0"))[0] == 200
        assert edge.front.pool.tallies["slow"].short
        looping, *behind = await asyncio.gather(
            edge.problem("slow?ms=100000&busy=1"), *(edge.call("slow?ms=0") for _ in range(3))
        )
        assert looping == (504, "time_limit")
        assert [answer[0] for answer in behind] == [200, 200, 200]


async def test_workers_that_die_at_their_start_are_not_started_in_a_hot_loop(tmp_path: Path) -> None:
    # The call waits for the next birth, which may be one of those that come late.
    async with node(tmp_path / "state", workers=1, queue_wait=60.0) as edge:
        await edge.release({"echo": guest("echo")})
        database = tmp_path / "state" / "db" / "skerry.db"
        content = database.read_bytes()
        for left in database.parent.glob("skerry.db-*"):
            left.unlink()
        database.write_bytes(b"this is no database" * 100)
        before = edge.front.pool.deaths
        for link in list(edge.front.pool.links):
            link.child.kill()
        await until(lambda: edge.front.pool.deaths >= before + 4)
        waiting = asyncio.ensure_future(edge.call("echo", b"at last"))
        await asyncio.sleep(0.5)
        assert edge.front.pool.deaths < before + 12
        database.write_bytes(content)
        assert (await waiting)[2] == b"at last"
