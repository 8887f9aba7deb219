"""The node's log never holds up what it tells about: not where nobody reads it, nor where functions log without end."""

import asyncio
import os
from pathlib import Path

import pytest

from edge_runtime import clock
from edge_runtime.ipc import child_output
from edge_runtime.token_bucket import TokenBucket
from tests.guests.build import wat
from tests.support.deadlines import deadline
from tests.support.edge import node, until
from tests.support.edge_process import front_process

CHATTY = wat("""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "Content-Type: text/plain\\n\\n.")
  (func (export "_start")
    (i32.store (i32.const 100) (i32.const 1000))
    (i32.store (i32.const 104) (i32.const 16000))
    (memory.fill (i32.const 1000) (i32.const 0x61) (i32.const 16000))
    (drop (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200)))
    (i32.store (i32.const 100) (i32.const 0))
    (i32.store (i32.const 104) (i32.const 27))
    (drop (call $write (i32.const 1) (i32.const 100) (i32.const 1) (i32.const 200)))))
""")
"""Logs one line of 16,000 bytes."""


async def test_a_node_serves_where_nobody_reads_its_log(tmp_path: Path) -> None:
    names = [f"chatty-{number}" for number in range(3)]
    async with node(tmp_path / "state") as edge:
        await edge.release(dict.fromkeys(names, CHATTY))
    async with front_process(tmp_path / "state", reads_log=False) as front:
        async with deadline(60):
            for number in range(180):
                status, _ = await front.call(names[number % 3])
                assert status == 200
                assert await front.healthy()
        async with front.http.get("/_skerry/metrics") as answer:
            counts = dict(line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if line[0] != "#")
        assert float(counts["skerry_edge_log_dropped_total"]) > 0
    assert front.returned == 0


async def test_what_functions_log_is_bounded_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long the calls take: none may log more than at once.
    monkeypatch.setattr("edge_runtime.dispatch.served_functions.LOG_RATE", 1)
    async with node(tmp_path / "state") as edge:
        await edge.release({"chatty": CHATTY, "quiet": CHATTY})
        with caplog.at_level("INFO"):
            for _ in range(100):
                assert (await edge.call("chatty"))[0] == 200
            assert (await edge.call("quiet"))[0] == 200
        tallies = edge.front.pool.tallies
        assert 0 < tallies["chatty"].log_dropped < 40
        assert tallies["quiet"].log_dropped == 0
        told = [r.getMessage() for r in caplog.records if r.name == "skerry.calls"]
        assert told[0] == "chatty: left out of its log since the start, because functions log too much: 1 line"
        assert len(told) < 5
        logged = [r.getMessage() for r in caplog.records if r.name == "skerry.guest"]
        assert len(logged) == 101 - tallies["chatty"].log_dropped
        edge.front.hooks.log.budget = TokenBucket(1000, 1)
        with caplog.at_level("INFO"):
            assert (await edge.call("quiet"))[0] == 200
        assert tallies["quiet"].log_dropped == 1


async def test_what_children_print_is_bounded_and_told(caplog: pytest.LogCaptureFixture) -> None:
    heard = child_output.ChildOutput()
    heard._budget = TokenBucket(50_000, 1)

    def flood() -> None:
        with os.fdopen(os.dup(heard.write), "wb") as pipe:
            for _ in range(300):
                pipe.write(b"x" * 900 + b"\n")

    await asyncio.to_thread(flood)
    await until(lambda: heard._left_out == 250)
    heard._budget = TokenBucket(50_000, 1)
    os.write(heard.write, b"the last\n")
    heard.started()
    await until(lambda: heard._left_out == 0)
    heard.close()
    told = [record.getMessage() for record in caplog.records if record.name == "skerry.child"]
    assert told == ["x" * 900] * 50 + [
        "left out of what the zygote and its children printed, too much: 250 lines",
        "the last",
    ]


async def test_children_that_print_nothing_but_ends_of_lines_cost_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def asked_time() -> float:
        nonlocal asked
        asked += 1
        return 0.0

    heard = child_output.ChildOutput()
    heard._budget = TokenBucket(1, 1)
    monkeypatch.setattr(clock, "monotonic", asked_time)
    os.write(heard.write, b"\n" * 60_000)
    await until(lambda: heard._left_out == 60_000)
    assert asked < 20
    heard.started()
    heard.close()
