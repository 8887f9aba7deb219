"""WASI on a node's runtime and by wasmtime, side by side: the same calls, one after the other, answer the same and
leave the same in the memory. What doesn't is in docs/reference/other-hosts.md, all of it.

`SKERRY_TEST_GUESTS` is how many sequences of calls are tried; `just faults` tries many more.
"""

import os
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.abi.wasi_signatures import SIGNATURES
from edge_runtime.guests.invocation import GuestFault, Request
from edge_runtime.guests.wasi import BADF, FAULT, INVAL, NOTCAPABLE, NOTDIR, NOTSUP, SPIPE, SUCCESS
from edge_runtime.oneshot.check import check_module
from tests.guests.build import wat
from tests.support import by_wasmtime, functions, wasi_calls
from tests.support.different import Differences
from tests.support.wasi_calls import PAGE, Answer, Call, Made, Ours, Setup, Step, Write

EXAMPLES = int(os.environ.get("SKERRY_TEST_GUESTS", "150"))
ALWAYS_THE_SAME = "SKERRY_TEST_GUESTS" not in os.environ
"""Whether each run tries the same sequences, so that what others find doesn't fail this one by chance."""
INTR, NOMEM = 27, 48

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def reference() -> Iterator[Executor]:
    with by_wasmtime.apart() as pool:
        yield pool


@pytest.fixture(scope="module")
def ours() -> Iterator[Ours]:
    with wasi_calls.ours() as made:
        yield made


def both(ours: Ours, reference: Executor, setup: Setup, steps: Sequence[Step]) -> tuple[Made, Made]:
    theirs = reference.submit(wasi_calls.by_wasmtime, setup, steps)
    return ours.run(setup, steps), theirs.result()


ARENA = 8192
"""Bytes apart from each other in which the pointers of a call lie."""
OUTSIDE = (PAGE, PAGE + 8, 2**31, 2**32 - 8)
FDS = (0, 1, 2, 3, 4, 2**31, 2**32 - 1)
FILE = {
    *("fd_advise", "fd_allocate", "fd_datasync", "fd_filestat_set_size", "fd_filestat_set_times", "fd_pread"),
    *("fd_pwrite", "fd_readdir", "fd_seek", "fd_sync", "fd_tell"),
    *(name for name in SIGNATURES if name.startswith(("path_", "sock_"))),
}
"""What is for files, folders and sockets, of which a function has none."""


page = Differences("WASI by wasmtime")


def known(call: Call, ours: Answer, theirs: Answer) -> str:
    """The entry of docs/reference/other-hosts.md that these answers are among; empty for none."""
    name, pair = call.name, (ours.errno, theirs.errno)
    if theirs.errno == "trap":
        if name == "proc_exit":
            return "exit codes above 125" if ours.errno == "exit" and call.arguments[0] > 125 else ""
        return "wrong arguments" if ours.errno not in ("trap", SUCCESS) else ""
    if name in FILE:
        wrong = theirs.errno in (BADF, INVAL, NOMEM) and ours.errno not in (SUCCESS, "trap")
        return "streams are no files" if wrong else ""
    if name in ("clock_res_get", "clock_time_get") and call.arguments[0] in (2, 3):
        return "clocks of the processor" if pair in ((SUCCESS, BADF), (FAULT, BADF)) else ""
    if name == "fd_read" and theirs.errno == INTR:
        return "reading nothing" if ours.errno in (SUCCESS, FAULT) else ""
    if name in ("fd_fdstat_set_flags", "fd_fdstat_set_rights"):
        return "flags and rights" if theirs.errno in (BADF, INVAL) and ours.errno != "trap" else ""
    return ""


def agree(ours: Made, theirs: Made, calls: Sequence[Call]) -> None:
    """Compare two runs up to the first difference that is known; without one, what was written too."""
    for call, mine, other in zip(calls, ours.answers, theirs.answers, strict=False):
        if mine != other:
            assert known(call, mine, other), (call, mine, other)
            return
    assert ours == theirs


KINDS = {
    **dict.fromkeys(["args_get", "args_sizes_get", "environ_get", "environ_sizes_get"], "pp"),
    **{"clock_res_get": "cp", "clock_time_get": "cop", "sched_yield": "", "proc_raise": "n"},
    **dict.fromkeys(["fd_close", "fd_datasync", "fd_sync"], "f"),
    **dict.fromkeys(["fd_fdstat_get", "fd_filestat_get", "fd_prestat_get", "fd_tell"], "fp"),
    **{"fd_advise": "foon", "fd_allocate": "foo", "fd_fdstat_set_flags": "fn", "fd_fdstat_set_rights": "foo"},
    **{"fd_filestat_set_size": "fo", "fd_filestat_set_times": "foon", "fd_prestat_dir_name": "fpn"},
    **dict.fromkeys(["fd_pread", "fd_pwrite", "fd_readdir"], "fpnop"),
    **{"fd_renumber": "ff", "fd_seek": "fonp", "path_filestat_get": "fnpnp", "path_filestat_set_times": "fnpnoon"},
    **dict.fromkeys(["path_create_directory", "path_remove_directory", "path_unlink_file"], "fpn"),
    **{"path_link": "fnpnfpn", "path_open": "fnpnnoonp", "path_readlink": "fpnpnp", "path_rename": "fpnfpn"},
    **{"path_symlink": "pnfpn", "sock_accept": "fnp", "sock_recv": "fpnnpp", "sock_send": "fpnnp"},
    **{"sock_shutdown": "fn", "random_get": "pn", "proc_exit": "e"},
}
"""What each argument is: a descriptor, a clock, a pointer, a number, a number of 64 bits, or an exit code. Reads and
writes are made by `vectors`, polls by tests of their own."""
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


@settings(max_examples=EXAMPLES, derandomize=ALWAYS_THE_SAME, deadline=None)
@given(started, st.lists(step, min_size=1, max_size=8))
def test_any_calls_of_wasi_answer_alike(ours: Ours, reference: Executor, setup: Setup, made: list[list[Step]]) -> None:
    steps = [each for steps in made for each in steps]
    agree(*both(ours, reference, setup, steps), [each for each in steps if isinstance(each, Call)])


# Function by function, with the values at the edges


def one(ours: Ours, reference: Executor, *steps: Step, stdin: bytes = b"", pages: int = 1) -> tuple[Made, Made]:
    setup = Setup(("program", "", "two words"), ("A=1", "EMPTY=", "LONG=" + "x" * 5000), stdin)
    theirs = reference.submit(wasi_calls.by_wasmtime, setup, steps, pages)
    return ours.run(setup, steps), theirs.result()


def errnos(made: Made) -> list[int | str]:
    return [answer.errno for answer in made.answers]


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


def streamed(*pieces: tuple[int, int]) -> bytes:
    return b"".join([struct.pack("<II", *piece) for piece in pieces])


def test_the_end_of_stdin(ours: Ours, reference: Executor) -> None:
    steps = [Write(0, streamed((1024, 4))), *[Call("fd_read", (0, 0, 1, 64))] * 4]
    mine, theirs = one(ours, reference, *steps, stdin=b"input")
    assert mine == theirs
    assert struct.unpack_from("<I", mine.memory, 64)[0] == 0
    mine, theirs = one(ours, reference, *steps)
    assert mine == theirs


SECOND = 1_000_000_000


def subscription(user: int, tag: int, of: int = 1, timeout: int = 0, flags: int = 0, precision: int = 0) -> bytes:
    """`of` is a clock or a descriptor."""
    return struct.pack("<QB7xI4xQQH6x", user, tag, of, timeout, precision, flags)


Event = tuple[int, int, int, int, int]


def polled(
    ours: Ours, reference: Executor, *subscriptions: bytes, stdin: bytes = b"abc"
) -> tuple[tuple[int | str, list[Event]], tuple[int | str, list[Event]]]:
    """The errno and the events, of a node's runtime and of wasmtime."""
    steps = [Write(1024, b"".join(subscriptions)), Call("poll_oneoff", (1024, 4 * ARENA, len(subscriptions), 0))]
    found = []
    for made in one(ours, reference, *steps, stdin=stdin):
        count = struct.unpack_from("<I", made.memory, 0)[0]
        events = [struct.unpack_from("<QHB5xQH", made.memory, 4 * ARENA + 32 * place) for place in range(count)]
        found.append((made.answers[-1].errno, events))
    return found[0], found[1]


POLLS = {
    "nothing": [],
    "a timer": [subscription(7, 0, timeout=1000)],
    "a timer that is due": [subscription(7, 0)],
    "timers that are due": [subscription(7, 0), subscription(8, 0, of=0), subscription(9, 0)],
    "the first of two timers": [subscription(7, 0, timeout=3600 * SECOND), subscription(8, 0, timeout=1_000_000)],
    "the same time twice": [subscription(user, 0, timeout=2_000_000) for user in (7, 7)],
    "many timers": [subscription(user, 0, timeout=user * SECOND) for user in range(1, 120)] + [subscription(0, 0)],
    "a time that has passed": [subscription(7, 0, of=0, timeout=1, flags=1)],
    "times that have passed": [subscription(7, 0, of=0, timeout=1, flags=1), subscription(8, 0, timeout=1, flags=1)],
    "a time that has passed and a timer": [subscription(7, 0, timeout=1, flags=1), subscription(8, 0, timeout=SECOND)],
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
    timer, late = subscription(1, 0), subscription(2, 0, timeout=3600 * SECOND)
    stdin, stdout, stderr = subscription(3, 1, of=0), subscription(4, 2, of=1), subscription(5, 2, of=2)
    for asked in ((stdin,), (stdout,), (stderr,), (late, stdin), (stdout, timer), (stderr, late, stdin, stdout)):
        mine, theirs = polled(ours, reference, *asked)
        assert (mine[0], [event[:3] for event in mine[1]]) == (theirs[0], [event[:3] for event in theirs[1]])


HEAD = b"Content-Type: text/plain\n\n"
PROGRAM = f"""
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\40\\00\\00\\00\\1a\\00\\00\\00\\5a\\00\\00\\00\\05\\00\\00\\00")
  (data (i32.const 64) "{HEAD.decode().replace(chr(10), chr(92) + "n")}hello")
  (func $head (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32))))
  (func $body (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 32))))
"""
ENDS = {
    "an end": '(func (export "_start") (call $head) (call $body))',
    "an exit": '(func (export "_start") (call $head) (call $body) (call $exit (i32.const CODE)) unreachable)',
    "an exit before the body": '(func (export "_start") (call $head) (call $exit (i32.const CODE)) (call $body))',
    "an exit in a function": (
        '(func $inner (call $head) (call $exit (i32.const CODE))) (func (export "_start") (call $inner) (call $body))'
    ),
    "an exit by a table": (
        "(table 1 funcref) (elem (i32.const 0) $exit) (type $code (func (param i32)))"
        ' (func (export "_start") (call $head) (call_indirect (type $code) (i32.const CODE) (i32.const 0)))'
    ),
    "an exit in the start section": (
        "(func $before (call $head) (call $exit (i32.const CODE))) (start $before)"
        ' (func (export "_start") (call $body))'
    ),
    "a start section": '(start $head) (func (export "_start") (call $body))',
    "stdout closed": '(func (export "_start") (call $head) (drop (call $close (i32.const 1))) (call $body))',
    "a trap": '(func (export "_start") (call $head) unreachable)',
    "a trap in the start section": '(start $before) (func $before unreachable) (func (export "_start") (call $body))',
}
"""Where a program may end."""


@pytest.mark.parametrize("code", [0, 7])
@pytest.mark.parametrize("case", ENDS)
def test_where_a_program_ends(case: str, code: int, reference: Executor, tmp_path: Path) -> None:
    wasm = wat(f"(module {PROGRAM} {ENDS[case].replace('CODE', str(code))})")
    ended, stdout, _ = reference.submit(wasi_calls.program_by_wasmtime, wasm, Setup()).result()
    loaded = functions.function(wasm, tmp_path)
    try:
        told = HEAD + loaded.call(Request("GET")).body
    except GuestFault as fault:
        told = str(fault).encode()
    loaded.close()
    if ended == 0:
        assert told == stdout or (not stdout and b"Its response is invalid" in told)
    else:
        assert (b"It trapped" if ended == "trap" else b"exit code %d." % ended) in told


# What is different, by the names in docs/reference/other-hosts.md


@page.shows("memory of no page")
def test_a_memory_of_no_page(reference: Executor) -> None:
    wasm = wat('(module (memory (export "memory") 0) (func (export "_start")))')
    with pytest.raises(ModuleRefused) as refused:
        check_module(wasm)
    assert refused.value.code == "memory_zero"
    assert reference.submit(wasi_calls.program_by_wasmtime, wasm, Setup()).result()[0] == 0


@page.shows("wrong arguments")
def test_wrong_arguments(ours: Ours, reference: Executor) -> None:
    for call in (
        Call("args_sizes_get", (PAGE, 0)),
        Call("clock_time_get", (0, 0, PAGE - 7)),
        Call("random_get", (PAGE - 1, 2)),
        Call("fd_write", (1, PAGE - 4, 1, 0)),
        Call("poll_oneoff", (0, PAGE, 1, 0)),
    ):
        mine, theirs = one(ours, reference, call)
        assert (errnos(mine), errnos(theirs)) == ([FAULT], ["trap"]), call
    mine, theirs = one(ours, reference, Call("clock_time_get", (0, 0, 3)))
    assert (errnos(mine), errnos(theirs)) == ([SUCCESS], ["trap"])
    for clock in (4, 2**31, 2**32 - 1):
        mine, theirs = one(ours, reference, Call("clock_time_get", (clock, 0, 0)))
        assert (errnos(mine), errnos(theirs)) == ([INVAL], ["trap"])


@page.shows("exit codes above 125")
def test_exit_codes(ours: Ours, reference: Executor) -> None:
    for code in (0, 1, 125):
        mine, theirs = one(ours, reference, Call("proc_exit", (code,)))
        assert mine == theirs
        assert mine.answers == [Answer("exit", code=code)]
    for code, told in ((126, 126), (255, 255), (2**31, -(2**31)), (2**32 - 1, -1)):
        mine, theirs = one(ours, reference, Call("proc_exit", (code,)))
        assert (mine.answers, errnos(theirs)) == ([Answer("exit", code=told)], ["trap"])


@page.shows("streams are no files")
def test_streams_are_no_files(ours: Ours, reference: Executor) -> None:
    calls = [
        *(Call("fd_sync", (1,)), Call("fd_filestat_set_size", (1, 0)), Call("fd_readdir", (0, 0, 0, 0, 0))),
        *(Call("path_open", (0, 0, 0, 0, 0, 0, 0, 0, 0)), Call("fd_pread", (1, 0, 0, 0, 0))),
    ]
    mine, theirs = one(ours, reference, *calls)
    assert errnos(mine) == [INVAL, INVAL, NOTDIR, NOTDIR, SPIPE]
    assert errnos(theirs) == [BADF] * 5


@page.shows("flags and rights")
def test_flags_and_rights(ours: Ours, reference: Executor) -> None:
    calls = [Call("fd_fdstat_set_flags", (1, flags)) for flags in (0, 4)]
    calls += [Call("fd_fdstat_set_rights", (1, rights, rights)) for rights in (64, 0, 2)]
    mine, theirs = one(ours, reference, *calls)
    assert errnos(mine) == [SUCCESS, NOTSUP, SUCCESS, NOTSUP, NOTCAPABLE]
    assert errnos(theirs) == [BADF] * 5


@page.shows("clocks of the processor")
def test_clocks_of_the_processor(ours: Ours, reference: Executor) -> None:
    calls = [Call(name, (clock, *more)) for clock in (2, 3) for name, more in CLOCKS]
    mine, theirs = one(ours, reference, *calls)
    assert (errnos(mine), errnos(theirs)) == ([SUCCESS] * 4, [BADF] * 4)
    mine_polled, theirs_polled = polled(ours, reference, subscription(7, 0, of=2), subscription(8, 0, of=3))
    assert (mine_polled, theirs_polled) == ((SUCCESS, [(7, 0, 0, 0, 0), (8, 0, 0, 0, 0)]), (INVAL, []))


CLOCKS = (("clock_res_get", (0,)), ("clock_time_get", (0, 0)))


@page.shows("several vectors")
def test_several_vectors(ours: Ours, reference: Executor) -> None:
    two = Write(0, streamed((1024, 3), (2048, 3)))
    mine, theirs = one(ours, reference, two, Call("fd_read", (0, 0, 2, 64)), stdin=b"input")
    assert [struct.unpack_from("<I", made.memory, 64)[0] for made in (mine, theirs)] == [5, 3]
    mine, theirs = one(ours, reference, two, Call("fd_write", (1, 0, 2, 64)))
    assert [struct.unpack_from("<I", made.memory, 64)[0] for made in (mine, theirs)] == [6, 3]
    for name, fd in (("fd_read", 0), ("fd_write", 1)):
        mine, theirs = one(
            ours, reference, Write(ARENA, streamed((0, 1))), Call(name, (fd, ARENA, 1025, 64)), stdin=b"i"
        )
        assert (errnos(mine), errnos(theirs)) == ([INVAL], [SUCCESS])


@page.shows("reading nothing")
def test_reading_nothing(ours: Ours, reference: Executor) -> None:
    mine, theirs = one(ours, reference, Call("fd_read", (0, 0, 0, 64)), stdin=b"input")
    assert (errnos(mine), errnos(theirs)) == ([SUCCESS], [INTR])


@page.shows("events of streams")
def test_events_of_streams(ours: Ours, reference: Executor) -> None:
    mine, theirs = polled(ours, reference, subscription(7, 1, of=0), subscription(8, 2, of=1))
    assert (mine[1], theirs[1]) == ([(7, 0, 1, 3, 0), (8, 0, 2, 1, 0)], [(7, 0, 1, 1, 0), (8, 0, 2, 1, 0)])
    mine, theirs = polled(ours, reference, subscription(7, 1, of=0), stdin=b"")
    assert (mine[1], theirs[1]) == ([(7, 0, 1, 0, 1)], [(7, 0, 1, 1, 0)])
    mine, theirs = polled(ours, reference, subscription(7, 1, of=9), subscription(8, 2, of=1))
    assert (mine, theirs) == ((SUCCESS, [(7, BADF, 1, 0, 0), (8, 0, 2, 1, 0)]), (BADF, []))


@page.shows("what a stream is")
def test_what_a_stream_is(ours: Ours, reference: Executor) -> None:
    for fd in range(3):
        mine, theirs = one(ours, reference, Call("fd_filestat_get", (fd, 0)))
        assert struct.unpack_from("<QQBxxxxxxxQQQQQ", mine.memory, 0) == (0, fd, 0, 1, 0, 0, 0, 0)
        assert struct.unpack_from("<QQBxxxxxxxQQQQQ", theirs.memory, 0) == (0,) * 8


def test_the_page_has_each_difference() -> None:
    assert page.entries == page.shown
