"""In which of a module's functions a place of its bytes is, and what its author calls that function. Pure.

Source: WebAssembly Core Specification 2.0, chapter 5.5 and the appendix "Custom Sections".
"""

from collections.abc import Iterator
from typing import Final

from edge_runtime.guests.abi.binary import FUNCTION, Malformed, read
from edge_runtime.guests.abi.code_section import Unknown, number

_CUSTOM, _CODE = 0, 10
_FUNCTION_NAMES: Final = 1
"""The subsection of the section `name` that has the functions' names."""
SHOWN: Final = 200
"""Characters of a name that are shown."""


def function_at(loaded: bytes, artifact: bytes, offset: int) -> str:
    """Return, for people, the function that has the byte `offset` of `loaded`: its number and name. `loaded` is what
    was made of the artifact to be run: other imports, and functions of the runtime behind its own. Empty where no
    function of the artifact has that byte, or the bytes can't be read."""
    try:
        place = _ordinal(loaded, offset)
        shape = read(artifact)
        if place is None or place >= len(shape.functions):
            return ""
        index = place + sum(each.kind == FUNCTION for each in shape.imports)
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
    """Return which of the bodies in the code section has a byte."""
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
    """Return a function's name in the name section; empty where it has none."""
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
