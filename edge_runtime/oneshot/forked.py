"""Runs a piece of work in a forked child, for single-threaded processes that need only the answer."""

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from typing import BinaryIO, Final

from edge_runtime.sandbox import fence

PERIOD: Final = 0.1
"""Seconds between two looks at a watched child."""
LONGEST: Final = 4 * 1024 * 1024
"""Bytes of the longest line of a watched child."""


def run_forked(work: Callable[[], bytes], seconds: float) -> tuple[bytes, int]:
    """Return what `work` returned in the child, and the child's status from waitpid. The bytes are empty if `work`
    failed; the traceback is then on stderr.

    Raises: TimeoutError, when there is no answer after `seconds`; the child has then been killed.
    """
    child, reading = _fork(lambda out: out.write(work()))
    deadline = time.monotonic() + seconds
    answer = bytearray()
    try:
        while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(reading, 65536)
            if not piece:
                return bytes(answer), os.waitpid(child, 0)[1]
            answer += piece
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise TimeoutError(f"no answer after {seconds:g} s")
    finally:
        os.close(reading)


def forked_lines(work: Callable[[BinaryIO], None], may_take: Callable[[], float | None]) -> Generator[bytes]:
    """Yield the lines that `work` writes in the child as they arrive. `may_take` returns the seconds that the next one
    may take, None for no limit. A child still running when the generator is closed is killed.

    Raises: TimeoutError, when a line took longer; the child has then been killed, and everything it wrote was yielded.
    """
    child, reading = _fork(work)
    rest = bytearray()
    overdue = False
    try:
        while True:
            if not overdue and not select.select([reading], [], [], may_take())[0]:
                overdue = True
                os.kill(child, signal.SIGKILL)
            piece = os.read(reading, 1 << 16)
            if not piece:
                break
            *lines, last = piece.split(b"\n")
            if lines:
                yield bytes(rest) + lines[0]
                yield from lines[1:]
                rest.clear()
            rest += last
        if overdue:
            raise TimeoutError("no answer in time")
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def watched_lines(work: Callable[[BinaryIO], None], look: Callable[[], None]) -> Generator[bytes]:
    """Yield the lines that `work` writes in the child as they arrive. Meanwhile call `look` every `PERIOD`; what it
    raises ends the generator. A child still running then, or when the generator is closed, is killed.

    Raises: ValueError, when a line is longer than `LONGEST`.
    """
    child, reading = _fork(work)
    rest = bytearray()
    try:
        while True:
            look()
            if not select.select([reading], [], [], PERIOD)[0]:
                continue
            piece = os.read(reading, 1 << 16)
            if not piece:
                return
            rest += piece
            *lines, last = rest.split(b"\n")
            yield from map(bytes, lines)
            rest = last
            if len(rest) > LONGEST:
                raise ValueError(f"a process wrote a line of more than {LONGEST} bytes")
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _fork(work: Callable[[BinaryIO], object]) -> tuple[int, int]:
    """Have a child do `work`; return its id, and a descriptor for its output. If `work` fails, the traceback is on
    stderr."""
    me = os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            fence.die_with_parent(me)
            with os.fdopen(writing, "wb") as out:
                work(out)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    return child, reading
