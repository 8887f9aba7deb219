"""What the front knows of a child that has ended: what it said before, and how it ended, in words."""

import asyncio
import contextlib
import signal
import socket
import time

import pytest

from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, how


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
