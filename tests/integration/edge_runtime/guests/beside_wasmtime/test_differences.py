"""What is different from wasmtime, by the names in docs/reference/other-hosts.md: each is shown."""

import struct
from concurrent.futures import Executor

import pytest

from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.wasi import BADF, FAULT, INVAL, NOTCAPABLE, NOTDIR, NOTSUP, SPIPE, SUCCESS
from edge_runtime.oneshot.check import check_module
from tests.guests.build import wat
from tests.support import wasi_calls
from tests.support.beside_wasmtime import ARENA, INTR, errnos, one, polled, streamed, subscription
from tests.support.different import Differences
from tests.support.wasi_calls import PAGE, Answer, Call, Ours, Setup, Write

page = Differences("WASI by wasmtime")
CLOCKS = (("clock_res_get", (0,)), ("clock_time_get", (0, 0)))


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
