"""What the front knows of a child that has ended, in words, and how long it waits for a zygote that starts."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_runtime.ipc import births, frames
from edge_runtime.ipc.births import how
from edge_runtime.ipc.zygote_client import START_LIMIT, Child, ZygoteClient
from tests.support.edge import until
from tests.support.moved_clock import MovedClock, moved_clock


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "ended with the zygote"),
        (3 << 8, "ended with status 3"),
        (signal.SIGKILL, "was ended by signal 9 (SIGKILL)"),
        # One of the real-time signals has no name, and others that only the C library has.
        (40, "was ended by signal 40"),
        (32, "was ended by signal 32"),
    ],
)
def test_an_end_is_told_in_words(status: int | None, words: str) -> None:
    assert how(status) == words


def test_a_thread_for_which_sigkill_waits_is_about_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine that takes a while. SIGKILL can't be held back, so another signal is."""
    held = signal.SIGUSR1
    monkeypatch.setattr(births, "_KILLED", 1 << held - 1)
    stat = Path("/proc/thread-self/stat")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {held})
    try:
        assert not births.ending(stat.read_bytes())
        signal.pthread_kill(threading.get_ident(), held)
        assert births.ending(stat.read_bytes())
    finally:
        signal.sigtimedwait({held}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def test_one_that_has_ended_still_says_why() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    child = Child(1, 0, ours)
    with theirs:
        frames.send_json(theirs, 0, frames.FAILED, frames.ChildFailure("database_unfit", "It can't be opened."))
    reply = await child.ask(frames.COUNT, None, 10.0)
    assert (reply.kind, frames.decode_failure(reply.body).code) == (frames.FAILED, "database_unfit")
    # That was all.
    with pytest.raises(frames.ChildGone):
        await child.ask(frames.COUNT, None, 10.0)
    child.close()
    with pytest.raises(frames.ChildGone):
        await child.ask(frames.COUNT, None, 10.0)


async def test_one_that_ended_in_the_middle_of_what_it_said_is_gone() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    child = Child(1, 0, ours)
    with theirs:
        theirs.send(frames.pack_json(0, frames.FAILED, frames.ChildFailure("database_unfit", "It can't."))[:-1])
    with pytest.raises(frames.ChildGone):
        await child.ask(frames.COUNT, None, 10.0)
    child.close()


async def test_one_that_never_stops_to_speak_lets_others_go_on() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    child, over = Child(1, 0, ours), time.monotonic() + 10

    def speak() -> None:
        said = frames.pack(0, frames.APPLYING, b"", b"x") * 1000
        with theirs, contextlib.suppress(OSError):
            while time.monotonic() < over:
                theirs.sendall(said)

    async def hear() -> None:
        while True:
            assert (await child.answer()).kind == frames.APPLYING

    speaking = asyncio.ensure_future(asyncio.to_thread(speak))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(hear(), 0.1)
    assert time.monotonic() < over
    child.close()
    await speaking


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b'{"code":"made_up","message":"x"}', ("internal", "x")),
        (b'{"code":"disk_full","message":"%b"}' % (b"x" * 20_000), ("disk_full", "x" * 10_000)),
        (b"[" * 100_000, ("internal", "It said what can't be read.")),
    ],
)
def test_a_failure_is_told_by_a_code_of_the_nodes(said: bytes, told: tuple[str, str]) -> None:
    failure = frames.decode_failure(said)
    assert (failure.code, failure.message) == told


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The FIFO from which zygotes take the steps of their start."""
    fifo = tmp_path / "steps"
    os.mkfifo(fifo)
    monkeypatch.setenv("SKERRY_STEPS", str(fifo))
    monkeypatch.setattr(ZygoteClient, "PROGRAM", "tests.support.slow_zygotes")
    return fifo


@contextlib.asynccontextmanager
async def starting() -> AsyncIterator[tuple[ZygoteClient, MovedClock]]:
    """A client that has zygotes started, by a clock that stands still."""
    with moved_clock() as moved:
        client = ZygoteClient(frames.ChildSettings("", "FULL", 0, "partial"), 0)
        moved.stand()
        running = asyncio.ensure_future(client.run())
        try:
            yield client, moved
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_zygote_that_comes_further_is_waited_for(steps: Path) -> None:
    """However slow the machine is."""
    async with starting() as (client, moved):
        with await asyncio.to_thread(steps.open, "w") as lines:
            for _ in range(4):
                before = client._starting.when()
                await moved.move(START_LIMIT * 0.9)
                print(file=lines, flush=True)
                await until(lambda before=before: client._starting.when() != before)
        await until(client._up.is_set)
        assert client.zygotes == 1


async def test_each_zygote_that_was_too_slow_is_followed_by_one_with_twice_the_time(
    steps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with starting() as (client, moved):
        for number in range(3):
            await moved.until(lambda number=number: client.zygotes > number and client._starting.when(), 0.05)
            assert client._start_limit == START_LIMIT * 2**number
            when = client._starting.when()
            assert when is not None
            await moved.move(when - moved.monotonic() - 0.5)
            assert client.pid
            await moved.move(1.0)
            # The clock may have passed the pause before the next one, too.
            await until(lambda number=number: not client.pid or client.zygotes > number + 1)
        await moved.until(lambda: client.zygotes == 4, 0.05)
        with await asyncio.to_thread(steps.open, "w"):
            pass
        await until(client._up.is_set)
        assert (client.zygotes, client._start_limit) == (4, START_LIMIT)
    assert "came no further in 120 s of its start; the next one has twice the time" in caplog.text
