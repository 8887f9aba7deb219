"""The log of `skerry serve` never holds up what it tells about: not where nobody reads it, nor at the end."""

import asyncio
import fcntl
import logging
import os
import re
import ssl
import sys
from collections.abc import Iterator

import aiohttp
import pytest

from control.cli import serve
from control.protocol.log_writer import LogHandler
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


def test_lines_have_a_time_in_utc_and_one_that_cannot_be_made_costs_only_itself(
    pipe: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = pipe
    handler = LogHandler(writing)
    handler.setFormatter(serve.line_format())
    for text, arguments in (("%d lines", ("many",)), ("afterwards", None)):
        handler.handle(logging.LogRecord("skerry.test", logging.INFO, "file.py", 7, text, arguments, None))
    handler.flush()
    said = os.read(reading, 4096)
    assert said.startswith(b"a line of the log at file.py:7 can't be made: TypeError(")
    assert re.search(rb"\n\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO skerry.test: afterwards\n$", said)
    assert handler.dropped == 0
    assert capfd.readouterr().err == ""
