"""The log of `skerry serve` never holds up what it tells about: not where nobody reads it, nor at the end."""

import asyncio
import fcntl
import logging
import os
import re
import ssl
import sys
import threading
from collections.abc import Iterator

import aiohttp
import pytest

from control.cli.support import server_log
from tests.support.control import until
from tests.support.deadlines import deadline, scaled
from tests.support.replica import Site

LIMIT = 120.0
"""Seconds for anything that must come to be."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that holds no more than a page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    os.close(writing)
    os.close(reading)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("skerry.test", logging.INFO, "file.py", 7, text, None, None)


def test_what_nobody_reads_is_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    queued = server_log.Queued(100)
    server_log.LogWriter(queued, writing).start()
    for number in range(400):
        # Were it to wait, this test would never end.
        queued.handle(record(f"line {number:03} {'x' * 100}"))
    dropped = queued.dropped
    assert 200 < dropped <= 300
    found: list[bytes] = []

    def told() -> int:
        return sum(int(count) for count in re.findall(rb"couldn't be written: (\d+) line", b"".join(found)))

    def numbers() -> list[int]:
        return [int(number) for number in re.findall(rb"line (\d{3}) x{100}\n", b"".join(found))]

    def read() -> None:
        while told() < dropped or len(numbers()) < 400 - dropped:
            found.append(os.read(reading, 65_536))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(scaled(LIMIT))
    assert not reader.is_alive()
    assert numbers() == sorted(numbers())
    assert (len(numbers()), told()) == (400 - dropped, dropped)
    queued.handle(record("afterwards"))
    queued.flush()
    assert os.read(reading, 200).endswith(b"Z INFO skerry.test: afterwards\n")


def test_a_descriptor_that_cannot_be_written_costs_only_its_lines(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_log, "FLUSH_LIMIT", LIMIT)
    queued = server_log.Queued()
    # It can only be read.
    server_log.LogWriter(queued, pipe[0]).start()
    queued.handle(record("one"))
    queued.handle(record("another"))
    queued.flush()
    assert queued.queue.unfinished_tasks == 0
    assert queued.dropped >= 2


async def test_control_serves_and_ends_where_nobody_reads_its_log(control_site: Site, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    environment = control_site.environment() | {"SKERRY_LOG_LEVEL": "debug"}
    serving = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control.cli", "serve", env=environment, stderr=writing
    )
    # Where it ends early, its end of the pipe is to be the last one.
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), writing, inheritable=False)
    try:
        async with deadline(LIMIT):
            said = b""
            while not (found := re.search(rb"serves on https://127.0.0.1:(\d+)\b.*\n", said)):
                more = await asyncio.to_thread(os.read, reading, 4096)
                assert more, said
                said += more
            port = int(found[1])
            # Each of them is told of, in a line of 60 characters or more.
            for _ in range(200):
                answers, asks = await asyncio.open_connection("127.0.0.1", port)
                asks.write(b"this is no TLS\r\n\r\n")
                await answers.read()
                asks.close()
            trust = ssl.create_default_context(cafile=str(control_site.ca))
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:

                async def ready() -> bool:
                    async with session.get(f"https://127.0.0.1:{port}/readyz") as answer:
                        return answer.status == 200

                await until(ready, scaled(LIMIT))
            serving.terminate()
            assert await serving.wait() == 0
    finally:
        if serving.returncode is None:
            serving.kill()
            await serving.wait()


def test_a_line_that_cannot_be_put_together_costs_only_itself(
    pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = pipe
    queued = server_log.Queued()
    server_log.LogWriter(queued, writing).start()
    wrong = logging.LogRecord("skerry.test", logging.INFO, "file.py", 7, "%d lines", ("many",), None)
    # Where it is logged, and in the thread that writes.
    queued.handle(wrong)
    queued.enqueue(wrong)
    queued.handle(record("afterwards"))
    queued.flush()
    said = os.read(reading, 4096)
    assert b"afterwards" in said
    assert b"couldn't be written: 2 lines" in said
    assert queued.dropped == 2
    assert capfd.readouterr().err == ""
