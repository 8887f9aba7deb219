"""WASI on a node's runtime and by wasmtime, side by side: any calls, one after the other, answer the same and leave
the same in the memory. What doesn't is in docs/reference/other-hosts.md, all of it.

`SKERRY_TEST_GUESTS` is how many sequences of calls are tried; `just faults` tries many more. They are the same in each
run; `SKERRY_TEST_SEED` makes others.
"""

import os
import struct
from concurrent.futures import Executor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.beside_wasmtime import ARENA, KINDS, agree, both
from tests.support.wasi_calls import PAGE, Call, Ours, Setup, Step, Write

EXAMPLES = int(os.environ.get("SKERRY_TEST_GUESTS", "60"))

pytestmark = pytest.mark.timeout(900)

OUTSIDE = (PAGE, PAGE + 8, 2**31, 2**32 - 8)
FDS = (0, 1, 2, 3, 4, 2**31, 2**32 - 1)
VALUES = {
    "f": st.sampled_from(FDS),
    "c": st.sampled_from([0, 0, 1, 1, 2, 3, 4, 2**32 - 1]),
    "n": st.sampled_from([0, 1, 2, 3, 4, 7, 8, 100]),
    "o": st.sampled_from([0, 1, 2, 64, 66, 2**63, 2**64 - 1]) | st.integers(0, 1000),
    "e": st.sampled_from([0, 1, 125, 126, 255, 2**31, 2**32 - 1]),
}
MASKS = {"clock_time_get": (2, 8), "random_get": (0, 100), "fd_filestat_get": (1, 64)}
"""Which argument points to bytes that are each run's own, and how many these are."""


@st.composite
def calls(draw: st.DrawFn) -> list[Step]:
    name = draw(st.sampled_from(sorted(KINDS)))
    arguments = []
    for place, kind in enumerate(KINDS[name]):
        if kind == "p":
            # Each has an arena of its own: what becomes of answers that overlap is nobody's business.
            inside = st.integers(0, 200).map(lambda words, place=place: ARENA * (place % 7 + 1) + 8 * words)
            arguments.append(draw(st.one_of(inside, inside, inside, st.sampled_from(OUTSIDE))))
        elif name == "random_get":
            arguments.append(draw(st.integers(0, 100)))
        else:
            arguments.append(draw(VALUES[kind]))
    if name == "fd_fdstat_get" and arguments[1] < PAGE:
        # Some write the bytes between the fields too, and some don't.
        return [Write(arguments[1], bytes(24)), Call(name, tuple(arguments))]
    if name not in MASKS:
        return [Call(name, tuple(arguments))]
    start, size = arguments[MASKS[name][0]], MASKS[name][1]
    return [Call(name, tuple(arguments), (start, size) if start + size <= PAGE else (0, 0))]


@st.composite
def vectors(draw: st.DrawFn, name: str) -> list[Step]:
    """Reads and writes with vectors of which one at most has bytes: what more vectors do is for a test of its own."""
    empty = [struct.pack("<II", draw(st.sampled_from([ARENA, PAGE])), 0) for _ in range(draw(st.integers(0, 3)))]
    start = draw(st.integers(0, 100).map(lambda byte: 4 * ARENA + byte) | st.sampled_from(OUTSIDE))
    full = struct.pack("<II", start, draw(st.integers(0, 300)))
    place = draw(st.integers(0, len(empty)))
    listed = b"".join([*empty[:place], full, *empty[place:]])
    at = draw(st.integers(0, 100).map(lambda words: 2 * ARENA + 8 * words))
    result = draw(st.integers(0, 100).map(lambda words: 3 * ARENA + 8 * words) | st.sampled_from(OUTSIDE))
    text = Write(4 * ARENA, draw(st.binary(max_size=300)))
    return [text, Write(at, listed), Call(name, (draw(VALUES["f"]), at, len(empty) + 1, result))]


step = st.one_of(calls(), calls(), vectors("fd_read"), vectors("fd_write"))
started = st.builds(
    Setup,
    st.lists(st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=9), max_size=4).map(tuple),
    st.lists(st.sampled_from(["A=", "B=1", "LONG=" + "x" * 300]), max_size=3, unique=True).map(tuple),
    st.binary(max_size=500),
)


@settings(max_examples=EXAMPLES)
@given(started, st.lists(step, min_size=1, max_size=8))
def test_any_calls_of_wasi_answer_alike(ours: Ours, reference: Executor, setup: Setup, made: list[list[Step]]) -> None:
    steps = [each for steps in made for each in steps]
    agree(*both(ours, reference, setup, steps), [each for each in steps if isinstance(each, Call)])
