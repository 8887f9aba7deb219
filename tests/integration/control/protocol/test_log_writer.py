"""The log of control and of nodes never holds up what it tells about: not where nobody reads it, nor after an error."""

import logging
import os
import re
import threading
from collections.abc import Iterator

import pytest

from control.protocol import log_writer
from control.protocol.log_writer import LogHandler
from tests.support.deadlines import scaled
from tests.support.edge import until


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
    writer = LogHandler(writing, limit=100_000)
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
    monkeypatch.setattr(log_writer, "RETRY", 0.01)
    writer = LogHandler(pipe[1])
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

    monkeypatch.setattr(log_writer.os, "write", write)
    # The thread has as long as a busy machine needs.
    monkeypatch.setattr(log_writer, "FLUSH_LIMIT", 60.0)
    writer = LogHandler(pipe[1])
    for number in range(100):
        writer.handle(record(f"{number:02}"))
    go_on.set()
    writer.flush()
    assert b"".join(writes) == b"".join(b"%02d\n" % number for number in range(100))
    # The first may have gone out before the others came.
    assert len(writes) <= 2


def test_a_descriptor_that_cannot_be_written_costs_only_its_lines(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "RETRY", 0.01)
    monkeypatch.setattr(log_writer, "FLUSH_LIMIT", 60.0)
    # It can only be read.
    writer = LogHandler(pipe[0])
    writer.handle(record("one"))
    writer.handle(record("another"))
    writer.flush()
    assert writer._done == writer._put
    assert writer.dropped >= 2


@pytest.mark.parametrize("error", [MemoryError, OSError, RuntimeError, ValueError])
async def test_the_thread_that_writes_outlives_any_error(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    failing, real = True, os.write

    def write(descriptor: int, data: bytes) -> int:
        if failing and descriptor == pipe[1]:
            raise error
        return real(descriptor, data)

    monkeypatch.setattr(log_writer, "RETRY", 0.01)
    monkeypatch.setattr(log_writer.os, "write", write)
    writer = LogHandler(pipe[1])
    writer.handle(record("lost"))
    await until(lambda: writer.dropped == 1)
    failing = False
    writer.handle(record("kept"))
    await until(lambda: writer._reported == 1)
    assert os.read(pipe[0], 1000).startswith(b"kept\ndropped of this log")
