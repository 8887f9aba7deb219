"""WASI as guests meet it: through a C library, and each function by itself, compiled and interpreted."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from control.protocol.manifest import Manifest
from edge_runtime.guests.abi.imports import WASI, WASI_SIGNATURES
from edge_runtime.guests.guest import LoadedFunction
from edge_runtime.guests.invocation import GuestFault, Request
from edge_runtime.guests.wasi import BADF, FAULT, INVAL, NOTCAPABLE, NOTDIR, NOTSOCK, NOTSUP, SPIPE, SUCCESS
from edge_runtime.ipc.frames import LocalFunction
from tests.guests.build import guest, wat
from tests.support.functions import function

Load = Callable[[bytes], LoadedFunction]


@pytest.fixture(params=["compiled", "interpreted"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Load:
    def made(wasm: bytes) -> LoadedFunction:
        if request.param == "compiled":
            return function(wasm, tmp_path)
        path = tmp_path / "module.wasm"
        path.write_bytes(wasm)
        manifest = Manifest()
        return LoadedFunction.load(
            LocalFunction("f", 1, hashlib.sha256(wasm).hexdigest(), manifest, "", wasm=str(path))
        )

    return made


LIBC = """\
arguments 1 -
argument 1 -
method 0 -
nothing 0 -
isatty0 0 ENOTTY
isatty1 0 ENOTTY
isatty2 0 ENOTTY
isatty3 0 EBADF
read 5 -
end 0 -
read-stdout -1 EBADF
write-stdin -1 EBADF
lseek -1 ESPIPE
fstat 0 -
getfl 1 -
fsync -1 EINVAL
ftruncate -1 EINVAL
close 0 -
close-again -1 EBADF
open -1 ENOENT
open-relative -1 ENOENT
create -1 ENOENT
fopen 0 ENOENT
stat -1 ENOENT
access -1 ENOENT
mkdir -1 ENOENT
rename -1 ENOENT
unlink -1 ENOENT
opendir 0 ENOENT
openat -1 ENOTDIR
openat-nowhere -1 EBADF
accept -1 ENOTSOCK
monotonic 1 -
realtime 1 -
gettimeofday 0 -
time 1 -
getres 0 -
nanosleep 0 -
slept 1 -
usleep 0 -
getentropy 0 -
random 1 -
sched_yield 0 -
poll 2 -
poll-events 1 -
poll-nothing 0 -
poll-slept 1 -
malloc 1 -
atexit 0 -
"""
"""As a program on Linux would see it, but for files: a C library finds no folder to look in (ENOENT)."""


def test_a_c_library_finds_what_it_looks_for(load: Load) -> None:
    answer = load(guest("libc")).call(Request("POST", body=b"hello"))
    assert answer.body.decode() == LIBC


ERRNOS: dict[str, tuple[int, int]] = {
    # With zeros for arguments, and with the largest numbers.
    "args_get": (SUCCESS, FAULT),
    "args_sizes_get": (SUCCESS, FAULT),
    "clock_res_get": (SUCCESS, INVAL),
    "clock_time_get": (SUCCESS, INVAL),
    "environ_get": (SUCCESS, FAULT),
    "environ_sizes_get": (SUCCESS, FAULT),
    "fd_advise": (SPIPE, BADF),
    "fd_allocate": (SPIPE, BADF),
    "fd_datasync": (INVAL, BADF),
    "fd_fdstat_get": (SUCCESS, BADF),
    "fd_fdstat_set_flags": (SUCCESS, BADF),
    "fd_fdstat_set_rights": (NOTSUP, BADF),
    "fd_filestat_get": (SUCCESS, BADF),
    "fd_filestat_set_size": (INVAL, BADF),
    "fd_filestat_set_times": (INVAL, BADF),
    "fd_pread": (SPIPE, BADF),
    "fd_prestat_dir_name": (NOTDIR, BADF),
    "fd_prestat_get": (BADF, BADF),
    "fd_pwrite": (SPIPE, BADF),
    "fd_read": (SUCCESS, BADF),
    "fd_readdir": (NOTDIR, BADF),
    "fd_renumber": (SUCCESS, BADF),
    "fd_seek": (SPIPE, BADF),
    "fd_sync": (INVAL, BADF),
    "fd_tell": (SPIPE, BADF),
    "fd_write": (BADF, BADF),
    "path_create_directory": (NOTDIR, BADF),
    "path_filestat_get": (NOTDIR, BADF),
    "path_filestat_set_times": (NOTDIR, BADF),
    "path_link": (NOTDIR, BADF),
    "path_open": (NOTDIR, BADF),
    "path_readlink": (NOTDIR, BADF),
    "path_remove_directory": (NOTDIR, BADF),
    "path_rename": (NOTDIR, BADF),
    "path_symlink": (NOTDIR, BADF),
    "path_unlink_file": (NOTDIR, BADF),
    "poll_oneoff": (INVAL, INVAL),
    "proc_raise": (NOTSUP, NOTSUP),
    "random_get": (SUCCESS, FAULT),
    "sched_yield": (SUCCESS, SUCCESS),
    "sock_accept": (NOTSOCK, BADF),
    "sock_recv": (NOTSOCK, BADF),
    "sock_send": (NOTSOCK, BADF),
    "sock_shutdown": (NOTSOCK, BADF),
    # Last: it closes stdin.
    "fd_close": (SUCCESS, BADF),
}


def caller(argument: int) -> bytes:
    """A module that calls each function, with `argument` for all of its arguments, and answers the errnos."""
    imports, calls = [], []
    for place, name in enumerate(ERRNOS):
        types = ["i64" if letter == "I" else "i32" for letter in WASI_SIGNATURES[name][0]]
        parameters = f"(param {' '.join(types)})" if types else ""
        imports.append(f'(import "{WASI}" "{name}" (func ${name} {parameters} (result i32)))')
        values = " ".join(f"({kind}.const {argument})" for kind in types)
        calls.append(f"(i32.store (i32.const {4096 + 4 * place}) (call ${name} {values}))")
    return wat(f"""(module {" ".join(imports)}
      (import "{WASI}" "fd_write" (func $answer (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 8192) "Content-Type: a/b\\0a\\0a")
      (func (export "_start") {" ".join(calls)}
        (i32.store (i32.const 0) (i32.const 8192)) (i32.store (i32.const 4) (i32.const 19))
        (i32.store (i32.const 8) (i32.const 4096)) (i32.store (i32.const 12) (i32.const {4 * len(ERRNOS)}))
        (drop (call $answer (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 16)))))""")


@pytest.mark.parametrize("which", [0, 1])
def test_every_function_links_and_answers_the_right_errno(load: Load, which: int) -> None:
    assert set(ERRNOS) | {"proc_exit"} == set(WASI_SIGNATURES)
    answer = load(caller((0, -1)[which])).call(Request("POST", body=b"input"))
    found = struct.unpack(f"<{len(ERRNOS)}I", answer.body)
    assert dict(zip(ERRNOS, found, strict=True)) == {name: errnos[which] for name, errnos in ERRNOS.items()}


@pytest.mark.parametrize(("code", "told"), [(1, "exit code 1."), (255, "exit code 255."), (-1, "exit code -1.")])
def test_an_exit_code_is_told(load: Load, code: int, told: str) -> None:
    wasm = wat(f"""(module (import "{WASI}" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const {code}))))""")
    with pytest.raises(GuestFault, match=told):
        load(wasm).call(Request("GET"))


def test_no_errno_is_beyond_those_of_the_specification() -> None:
    assert all(0 <= errno <= NOTCAPABLE for errnos in ERRNOS.values() for errno in errnos)
