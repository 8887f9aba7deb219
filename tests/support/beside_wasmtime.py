"""WASI on a node's runtime beside wasmtime: runs of both, and what is known to be different in them."""

import struct
from collections.abc import Sequence
from concurrent.futures import Executor

from edge_runtime.guests.abi.imports import WASI_SIGNATURES
from edge_runtime.guests.wasi import BADF, FAULT, INVAL, SUCCESS
from tests.support import wasi_calls
from tests.support.wasi_calls import Answer, Call, Made, Ours, Setup, Step, Write

INTR, NOMEM = 27, 48
SECOND = 1_000_000_000
ARENA = 8192
"""Bytes apart from each other in which the pointers of a call lie."""
FILE = {
    *("fd_advise", "fd_allocate", "fd_datasync", "fd_filestat_set_size", "fd_filestat_set_times", "fd_pread"),
    *("fd_pwrite", "fd_readdir", "fd_seek", "fd_sync", "fd_tell"),
    *(name for name in WASI_SIGNATURES if name.startswith(("path_", "sock_"))),
}
"""What is for files, folders and sockets, of which a function has none."""


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


def both(ours: Ours, reference: Executor, setup: Setup, steps: Sequence[Step]) -> tuple[Made, Made]:
    theirs = reference.submit(wasi_calls.by_wasmtime, setup, steps)
    return ours.run(setup, steps), theirs.result()


def one(ours: Ours, reference: Executor, *steps: Step, stdin: bytes = b"", pages: int = 1) -> tuple[Made, Made]:
    setup = Setup(("program", "", "two words"), ("A=1", "EMPTY=", "LONG=" + "x" * 5000), stdin)
    theirs = reference.submit(wasi_calls.by_wasmtime, setup, steps, pages)
    return ours.run(setup, steps), theirs.result()


def errnos(made: Made) -> list[int | str]:
    return [answer.errno for answer in made.answers]


def streamed(*pieces: tuple[int, int]) -> bytes:
    return b"".join([struct.pack("<II", *piece) for piece in pieces])


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
