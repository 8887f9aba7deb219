"""In which function of its module a guest trapped, and what its author calls that function.

WasmEdge's interpreter logs the place of the instruction; compiled code doesn't. Source: WebAssembly Core Specification
2.0, chapter 5.5 and the appendix "Custom Sections".
"""

import os
import re
from collections.abc import Iterator
from typing import Final

from edge_runtime.code_section import Unknown, number
from edge_runtime.guests.abi.binary import FUNCTION, Malformed, read
from edge_runtime.guests.function_code import interpreted
from edge_runtime.wasmedge.c_api import library

_CUSTOM, _CODE = 0, 10
_FUNCTION_NAMES: Final = 1
"""The subsection of the section `name` that has the functions' names."""
_OFFSET: Final = re.compile(rb"Bytecode offset: 0x([0-9a-f]{1,8})")
"""What the interpreter logs about the instruction that trapped."""
SHOWN: Final = 200
"""Characters of a name that are shown."""


def divert() -> int:
    """Redirect WasmEdge's log from stdout into memory; return its descriptor. For a process that makes one call."""
    written = os.memfd_create("skerry-trap")
    os.dup2(written, 1)
    library.WasmEdge_LogSetErrorLevel()
    return written


def place(written: int, wasm: bytes, abi: str) -> str:
    """Return, in words, the function of the artifact `wasm` in which the interpreter trapped; empty if that isn't
    known. `written` is what `divert` returned."""
    offsets = _OFFSET.findall(os.pread(written, 65_536, 0))
    return function_at(interpreted(wasm, abi), wasm, int(offsets[0], 16)) if offsets else ""


def function_at(loaded: bytes, artifact: bytes, offset: int) -> str:
    """Return, in words, the function that has the byte `offset` of `loaded`: its number and name. `loaded` is the
    artifact as prepared for running: with other imports, and functions of the runtime after its own. Empty if no
    function of the artifact has that byte or the bytes can't be read."""
    try:
        ordinal = _ordinal(loaded, offset)
        shape = read(artifact)
        if ordinal is None or ordinal >= len(shape.functions):
            return ""
        index = ordinal + sum(each.kind == FUNCTION for each in shape.imports)
        names = [name for name, (kind, at) in shape.exports.items() if kind == FUNCTION and at == index]
        name = _name(artifact, index) or next(iter(names), "")
    except (Malformed, Unknown, IndexError):
        return ""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:SHOWN])
    return f"function {index} ({shown})" if shown else f"function {index}"


def _sections(wasm: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each section's number, and where its content begins and ends. Raises: Unknown; IndexError."""
    at = 8
    while at < len(wasm):
        size, start = number(wasm, at + 1)
        yield wasm[at], start, min(start + size, len(wasm))
        at = start + size


def _ordinal(wasm: bytes, offset: int) -> int | None:
    """Return which of the bodies in the code section contains a byte."""
    for section, start, end in _sections(wasm):
        if section == _CODE and start <= offset < end:
            count, at = number(wasm, start)
            for ordinal in range(count):
                size, body = number(wasm, at)
                at = body + size
                if offset < at:
                    return ordinal if offset >= body else None
    return None


def _name(wasm: bytes, index: int) -> str:
    """Return a function's name in the name section; empty if it has none."""
    for section, start, end in _sections(wasm):
        if section != _CUSTOM or wasm[start : start + 5] != b"\4name":
            continue
        at = start + 5
        while at < end:
            kind, (size, content) = wasm[at], number(wasm, at + 1)
            at = content + size
            if kind != _FUNCTION_NAMES:
                continue
            count, place = number(wasm, content)
            for _ in range(count):
                found, place = number(wasm, place)
                length, text = number(wasm, place)
                place = text + length
                if place > end:
                    return ""
                if found == index:
                    return wasm[text:place].decode(errors="replace")
    return ""
