"""What the front knows of a child that has ended: what it said before, and how it ended, in words."""

import signal
import socket

import pytest

from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, decode_failure, how


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
    assert (reply.kind, decode_failure(reply.body).code) == (frames.FAILED, "database_unfit")
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
