"""Where a program may end: on a node as by wasmtime."""

from concurrent.futures import Executor
from pathlib import Path

import pytest

from edge_runtime.guests.invocation import GuestFault, Request
from tests.guests.build import wat
from tests.support import functions, wasi_calls
from tests.support.wasi_calls import Setup

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
