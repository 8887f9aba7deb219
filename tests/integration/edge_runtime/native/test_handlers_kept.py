"""WasmEdge's signal handlers stay while two threads of a test's process enter compiled code and leave it."""

import re
import signal
from pathlib import Path

import pytest

from edge_runtime.native import library
from edge_runtime.wasmedge import QUICK, Config, EntryPoint, Memory, Module, Program, Trap, compile_module
from tests.guests.build import wat
from tests.support.both_ways import handlers_kept

pytestmark = [
    pytest.mark.never_retry,
    pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}"),
]
TRAPS = """
(module (memory (export "memory") 1)
  (func (export "_start") (drop (i32.load (i32.const 0x7fffffff)))))
"""
START = EntryPoint("_start")


def is_caught() -> bool:
    """Whether this process has a handler for the signal that such a trap is."""
    caught = re.findall(r"SigCgt:\s+(\w+)", Path("/proc/self/status").read_text())[0]
    return bool(int(caught, 16) >> (signal.SIGSEGV - 1) & 1)


def trapped(program: Program) -> None:
    with program.open(Memory()), pytest.raises(Trap, match="out of bounds memory access"):
        program.call(START)


def test_handlers_stay_until_the_block_ends(tmp_path: Path) -> None:
    config = Config(memory_pages=1)
    module = Module.from_file(compile_module(wat(TRAPS), tmp_path, QUICK).path, config)
    program = Program(module, config, [], [START])
    trapped(program)
    assert not is_caught(), "the last one that leaves takes them away"
    with handlers_kept():
        assert is_caught()
        for _ in range(3):
            trapped(program)
            assert is_caught()
    assert not is_caught()
