"""In which function of its module a guest trapped, as far as WasmEdge logs it: its interpreter does, and its compiled
code doesn't."""

import os
import re
from typing import Final

from edge_runtime.guests.abi.trap_places import function_at
from edge_runtime.guests.function_code import interpreted
from edge_runtime.wasmedge.c_api import library

_OFFSET: Final = re.compile(rb"Bytecode offset: 0x([0-9a-f]{1,8})")
"""What the interpreter logs of the instruction that trapped."""


def divert() -> int:
    """Have what WasmEdge logs, which goes to stdout, go into memory; return its descriptor. For a process that makes
    one call."""
    written = os.memfd_create("skerry-trap")
    os.dup2(written, 1)
    library.WasmEdge_LogSetErrorLevel()
    return written


def place(written: int, wasm: bytes, abi: str) -> str:
    """Return, for people, the function of the artifact `wasm` in which the interpreter trapped; empty where that isn't
    known. `written` is what `divert` returned."""
    offsets = _OFFSET.findall(os.pread(written, 65_536, 0))
    return function_at(interpreted(wasm, abi), wasm, int(offsets[0], 16)) if offsets else ""
