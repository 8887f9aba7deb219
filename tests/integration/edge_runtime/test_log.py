"""The node's log never holds up what it tells about: not where nobody reads it, nor where functions log without end."""

import asyncio
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime import clock, logs
from edge_runtime.ipc import child_output
from edge_runtime.token_bucket import TokenBucket
from tests.guests.build import wat
from tests.support.deadlines import deadline, scaled
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


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(writing)
    os.close(reading)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("skerry.test", logging.INFO, "file.py", 7, text, None, None)


async def test_what_nobody_reads_is_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = logs.LogHandler(writing, limit=100_000)
    for number in range(400):
        # Were it to wait, this test would never end.
        writer.handle(record(f"{number:03} " + "x" * 996))
    dropped = writer.dropped
    assert 200 < dropped < 350
    found: list[bytes] = []

    def told() -> int:
        return sum(int(count) for count in re.findall(rb"couldn't be written: (\d+) lines?\n", b"".join(found)))

    def numbers() -> list[int]:
        return [int(line[:3]) for line in b"".join(found).splitlines() if b"x" * 996 in line]

    def read() -> None:
        while told() < dropped or len(numbers()) < 400 - dropped:
            found.append(os.read(reading, 65_536))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    await until(lambda: not reader.is_alive())
    assert numbers() == sorted(numbers())
    assert len(numbers()) == 400 - dropped
    assert told() == dropped
    writer.handle(record("afterwards"))
    writer.flush()
    assert os.read(reading, 100) == b"afterwards\n"
    assert writer.dropped == dropped


async def test_a_line_that_cannot_be_made_or_written_costs_nothing_else(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "RETRY", 0.01)
    writer = logs.LogHandler(pipe[1])
    broken = record("%d")
    broken.args = ("x",)
    writer.handle(broken)
    writer.flush()
    assert os.read(pipe[0], 1000).startswith(b"a line of the log at file.py:7 can't be made: TypeError(")
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        # The disk is full, and then it isn't.
        writer._descriptor = full
        writer.handle(record("lost"))
        await until(lambda: writer.dropped == 1)
        writer._descriptor = pipe[1]
        writer.handle(record("kept"))
        await until(lambda: writer._reported == 1)
        assert os.read(pipe[0], 1000).startswith(
            b"kept\ndropped of this log, which wasn't read in time or couldn't be written: 1 line\n"
        )
    finally:
        os.close(full)


def test_lines_that_come_together_go_out_together(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write costs the loop's thread a hand-over of the interpreter."""
    writes: list[bytes] = []
    go_on = threading.Event()

    def write(descriptor: int, data: memoryview) -> int:
        writes.append(bytes(data))
        go_on.wait(scaled(60))
        return len(data)

    monkeypatch.setattr(logs.os, "write", write)
    # The thread has as long as a busy machine needs.
    monkeypatch.setattr(logs, "FLUSH_LIMIT", 60.0)
    writer = logs.LogHandler(pipe[1])
    for number in range(100):
        writer.handle(record(f"{number:02}"))
    go_on.set()
    writer.flush()
    assert b"".join(writes) == b"".join(b"%02d\n" % number for number in range(100))
    # The first may have gone out before the others came.
    assert len(writes) <= 2


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
