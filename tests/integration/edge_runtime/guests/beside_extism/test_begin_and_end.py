"""What a plug-in does before the function that is called, and where it ends: on a node and by Extism's own host."""

from concurrent.futures import Executor
from pathlib import Path

import pytest

from tests.guests.build import guest
from tests.support.beside_extism import RUN, by_reference, function, module
from tests.support.by_extism import Call, End, alike, by_node

INITIALIZED = {
    "_initialize": ('(export "_initialize" (func $begin))', RUN),
    "constructors": ('(export "__wasm_call_ctors" (func $begin))', RUN),
    "both": (
        '(func (export "_initialize") (call $begin) (call $begin)) (export "__wasm_call_ctors" (func $begin))',
        RUN,
    ),
    "haskell": (
        '(export "_initialize" (func $begin)) (export "__wasm_call_ctors" (func $begin))',
        '(func (export "hs_init") (param i32 i32) (call $begin) (if (local.get 0) (then unreachable)))',
        RUN,
    ),
    "haskell alone": (
        '(export "__wasm_call_ctors" (func $begin)) (func (export "hs_init") (param i32 i32) (call $begin))',
        RUN,
    ),
    "start section": ("(start $begin)", RUN),
    "of another type": ('(func (export "__wasm_call_ctors") (result i32) (call $begin) (i32.const 0))', RUN),
    "sees no input": (
        '(func (export "_initialize") (if (i64.ne (call $size) (i64.const 0)) (then unreachable)))',
        RUN,
    ),
    "error before": ('(export "_initialize" (func $complain))', RUN),
    "answer before": ('(export "_initialize" (func $say)) (func (export "run") (result i32) (i32.const 0))',),
    "answer in a start section": ("(start $say)", '(func (export "run") (result i32) (i32.const 0))'),
    "exit in a start section": ("(func $leave (call $exit (i32.const 0))) (start $leave)", RUN),
    "exit in _initialize": ('(func (export "_initialize") (call $exit (i32.const 0)))', RUN),
    "exit in the constructors": ('(func (export "__wasm_call_ctors") (call $exit (i32.const 0)))', RUN),
    "exit in hs_init": ('(func (export "hs_init") (param i32 i32) (call $exit (i32.const 0)))', RUN),
    "exit with an answer": ('(func (export "run") (result i32) (call $say) (call $exit (i32.const 0)) unreachable)',),
    "exit with an error": ('(func (export "run") (call $complain) (call $exit (i32.const 0)))',),
    "exit with an error and a code": ('(func (export "run") (call $complain) (call $exit (i32.const 9)))',),
    "a trap in _initialize": ('(func (export "_initialize") (call $complain) unreachable)', RUN),
    "a trap in the constructors": ('(func (export "__wasm_call_ctors") (call $complain) unreachable)', RUN),
    "an error and a trap": ('(func (export "run") (call $complain) unreachable)',),
    "a command": ('(func (export "_start") (call $say))', '(export "run" (func $say))'),
    "no such function": ("",),
    "a function with a parameter": ('(func (export "run") (param i32) (call $say))',),
}
"""What a plug-in does before the function that is called, and where it ends."""


@pytest.mark.parametrize("case", INITIALIZED)
def test_a_plugin_begins_and_ends_as_by_extism(case: str, reference: Executor, tmp_path: Path) -> None:
    wasm = module(*INITIALIZED[case])
    loaded = function(wasm, tmp_path, "interpreted")
    call = Call("_start" if case == "a command" else "run", b"in")
    mine, theirs = by_node(loaded, call), alike(by_reference(reference, [call], wasm)[0])
    loaded.close()
    if "in _initialize" in case or "in the" in case or "section" in case or "in hs_init" in case:
        # The reference host has the initialization of a plug-in fail, whatever the reason.
        mine = mine._replace(how="refused", data=b"") if mine.how in ("trap", "code") else mine
    if theirs.how == "error" and theirs.data.startswith(b"expected "):
        theirs = End("refused")
    assert mine == theirs


PLUGIN = [
    *[Call(name, bytes(range(size))) for name in ("echo", "own_input") for size in (0, 1, 7, 8, 9, 250)],
    *[Call(name) for name in ("nothing", "state", "fail", "fail_though_0", "fail_silently", "trap", "fail_and_trap")],
    *[Call("fail", b"its input"), Call("vars"), Call("many_vars"), Call("fill_vars", b"10"), Call("fill_vars", b"11")],
    *[Call("leave", code) for code in (b"0", b"5", b"125")],
    *[Call("config", key) for key in (b"thing", b"empty", b"", "ключ".encode(), b"none", b"\xff")],
    *[Call("large", size) for size in (b"0", b"1", b"100000", b"8000000")],
    *[Call(name, b"{}") for name in ("sql", "ask", "fetch", "traces", "soil", "logs")],
    *[Call(name, at) for name in ("output_outside", "error_outside") for at in (b"3", b"4294967295")],
    *[Call("bad_handle", at) for at in (b"17", b"18446744073709551615")],
]


def test_a_plugin_in_c_ends_alike(reference: Executor, tmp_path: Path) -> None:
    loaded = function(guest("plugin"), tmp_path, "compiled")
    mine = [by_node(loaded, call) for call in PLUGIN]
    loaded.close()
    # What it writes to stdout and stderr is in the log of a node's call alone.
    mine = [end._replace(log=end.log.removesuffix(b"stdout\nstderr\n")) for end in mine]
    assert mine == [alike(end) for end in by_reference(reference, PLUGIN, guest("plugin"))]
