"""WASI function by function, with the values at the edges: a node's runtime answers as wasmtime."""

import struct
import time
from concurrent.futures import Executor

import pytest

from edge_runtime.guests.wasi import BADF, FAULT, SUCCESS
from tests.support import wasi_calls
from tests.support.beside_wasmtime import ARENA, KINDS, SECOND, agree, errnos, one, polled, streamed, subscription
from tests.support.wasi_calls import PAGE, Call, Ours, Write

HOUR = 3600 * SECOND
"""So late that it isn't due while a busy machine doesn't run what polls."""


@pytest.mark.parametrize("name", ["args", "environ"])
def test_arguments_and_variables(ours: Ours, reference: Executor, name: str) -> None:
    steps = [Call(f"{name}_sizes_get", (8, 16)), Call(f"{name}_get", (1024, 4096))]
    mine, theirs = one(ours, reference, *steps)
    assert mine == theirs
    assert errnos(mine) == [SUCCESS, SUCCESS]
    # The last place where they fit, and one further.
    count, size = struct.unpack_from("<I4xI", mine.memory, 8)
    steps = [Call(f"{name}_get", (PAGE - 4 * count, 4096)), Call(f"{name}_get", (1024, PAGE - size))]
    mine, theirs = one(ours, reference, *steps)
    assert mine == theirs
    assert errnos(mine) == [SUCCESS, SUCCESS]
    for outside in ((PAGE - 4 * count + 4, 4096), (1024, PAGE - size + 1)):
        mine, theirs = one(ours, reference, Call(f"{name}_get", outside))
        assert (errnos(mine), errnos(theirs)) == ([FAULT], ["trap"])


@pytest.mark.parametrize("clock", [0, 1])
def test_clocks(ours: Ours, reference: Executor, clock: int) -> None:
    steps = [
        Call("clock_res_get", (clock, 0)),
        *[
            Call("clock_time_get", (clock, precision, 8 + 8 * place))
            for place, precision in enumerate((0, 1, 2**64 - 1))
        ],
    ]
    for made in one(ours, reference, *steps):
        assert errnos(made) == [SUCCESS] * 4
        resolution, *times = struct.unpack_from("<4Q", made.memory, 0)
        assert resolution == 1
        assert times == sorted(times)
        assert abs(times[0] - time.time_ns()) < 600e9 if clock == 0 else 0 <= times[0] < 600e9


def test_random_bytes(reference: Executor) -> None:
    nothing = [Call("random_get", (at, 0)) for at in (0, 8, PAGE * 20 - 1, PAGE * 20)]
    much = [Call("random_get", (8, 1 << 20)), Call("random_get", (PAGE * 20 - 1, 1))]
    with wasi_calls.ours(20) as ours:
        mine, theirs = one(ours, reference, *nothing, pages=20)
        assert mine == theirs
        for made in one(ours, reference, *much, pages=20):
            assert errnos(made) == [SUCCESS, SUCCESS]
            assert made.memory[8 : 8 + (1 << 20)].count(0) < 10_000
            assert made.memory[:8] == bytes(8)
            assert made.memory[8 + (1 << 20) : PAGE * 20 - 1].count(0) == PAGE * 20 - 9 - (1 << 20)


def test_descriptors_that_are_closed(ours: Ours, reference: Executor) -> None:
    """Each call on each of 0 to 3, open and closed."""
    asked = [(name, kinds) for name, kinds in KINDS.items() if kinds[:1] == "f" and name != "fd_close"]
    for fd in range(4):
        for closed in (False, True):
            for name, kinds in asked:
                arguments = (fd, *[ARENA * place if kind == "p" else 0 for place, kind in enumerate(kinds[1:], 1)])
                calls = [Call("fd_close", (fd,))] if closed else []
                calls.append(Call(name, arguments, (ARENA, 64) if name == "fd_filestat_get" else (0, 0)))
                mine, theirs = one(ours, reference, *calls, stdin=b"input")
                agree(mine, theirs, calls)
                if closed or fd == 3:
                    assert errnos(mine)[-1] == BADF


def test_what_a_descriptor_is_renumbered_to(ours: Ours, reference: Executor) -> None:
    text = [Write(1024, b"abc"), Write(0, struct.pack("<II", 1024, 3))]
    for source, target in ((1, 2), (2, 1), (0, 1), (1, 1), (0, 3), (3, 0), (1, 0)):
        calls = [
            Call("fd_renumber", (source, target)),
            *[Call("fd_write", (fd, 0, 1, 64)) for fd in range(4)],
            *[Call("fd_read", (fd, 0, 1, 64)) for fd in range(4)],
            *[Call("fd_fdstat_get", (fd, 128)) for fd in range(4)],
            Call("fd_renumber", (target, source)),
        ]
        mine, theirs = one(ours, reference, *text, *calls, stdin=b"input")
        assert mine == theirs, (source, target)


def test_the_end_of_stdin(ours: Ours, reference: Executor) -> None:
    steps = [Write(0, streamed((1024, 4))), *[Call("fd_read", (0, 0, 1, 64))] * 4]
    mine, theirs = one(ours, reference, *steps, stdin=b"input")
    assert mine == theirs
    assert struct.unpack_from("<I", mine.memory, 64)[0] == 0
    mine, theirs = one(ours, reference, *steps)
    assert mine == theirs


POLLS = {
    "nothing": [],
    "a timer": [subscription(7, 0, timeout=1000)],
    "a timer that is due": [subscription(7, 0)],
    "timers that are due": [subscription(7, 0), subscription(8, 0, of=0), subscription(9, 0)],
    "the first of two timers": [subscription(7, 0, timeout=HOUR), subscription(8, 0, timeout=1_000_000)],
    "the same time twice": [subscription(user, 0, timeout=2_000_000) for user in (7, 7)],
    "many timers": [subscription(user, 0, timeout=user * HOUR) for user in range(1, 120)] + [subscription(0, 0)],
    "a time that has passed": [subscription(7, 0, of=0, timeout=1, flags=1)],
    "times that have passed": [subscription(7, 0, of=0, timeout=1, flags=1), subscription(8, 0, timeout=1, flags=1)],
    "a time that has passed and a timer": [subscription(7, 0, timeout=1, flags=1), subscription(8, 0, timeout=HOUR)],
    "a precision": [subscription(7, 0, timeout=1000, precision=2**64 - 1)],
    "no clock": [subscription(7, 0, of=4)],
    "a clock and no clock": [subscription(7, 0), subscription(8, 0, of=9)],
    "no flag": [subscription(7, 0, flags=2)],
    "no kind": [subscription(7, 3)],
    "a clock and no kind": [subscription(7, 0), subscription(8, 255)],
}


@pytest.mark.parametrize("case", POLLS)
def test_polls_for_timers(ours: Ours, reference: Executor, case: str) -> None:
    mine, theirs = polled(ours, reference, *POLLS[case])
    # How many bytes can be read at a clock: some say 1, where one timer is polled alone.
    assert mine == (theirs[0], [(*event[:3], 0, 0) for event in theirs[1]])


def test_polls_for_streams(ours: Ours, reference: Executor) -> None:
    timer, late = subscription(1, 0), subscription(2, 0, timeout=HOUR)
    stdin, stdout, stderr = subscription(3, 1, of=0), subscription(4, 2, of=1), subscription(5, 2, of=2)
    for asked in ((stdin,), (stdout,), (stderr,), (late, stdin), (stdout, timer), (stderr, late, stdin, stdout)):
        mine, theirs = polled(ours, reference, *asked)
        assert (mine[0], [event[:3] for event in mine[1]]) == (theirs[0], [event[:3] for event in theirs[1]])
