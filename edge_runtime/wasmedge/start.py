"""Takes a module's start section out, and exports its function in the place of it. Pure.

WasmEdge runs a start section while it instantiates, before anyone can see whether the guest's memory was reserved
(`wasmedge.instance` says what happens where it wasn't). Exported, it is called once that was checked.
Source: WebAssembly Core Specification 2.0, chapter 5.5.
"""

from typing import Final

from .errors import LoadError

NAME: Final = "skerry: start"
"""The export; modules as they are uploaded can't have it."""

_CORE: Final = b"\0asm\1\0\0\0"
_EXPORT, _START = 7, 8
_ENTRY: Final = bytes([len(NAME)]) + NAME.encode() + b"\0"
_MALFORMED: Final = 0x0104
"""WasmEdge's code for a section that is cut off."""


def deferred(wasm: bytes) -> bytes:
    """The same module without a start section; unchanged where it has none. Error: LoadError, where its sections can't
    be told apart."""
    if not wasm.startswith(_CORE):
        return wasm
    at = len(_CORE)
    export = start = None
    while at < len(wasm):
        section, (size, content) = wasm[at], _number(wasm, at + 1)
        end = content + size
        if end > len(wasm) or (section == _START and start is not None):
            raise LoadError(_MALFORMED, f"section {section} is cut off, or there twice")
        if section == _EXPORT:
            export = (at, content, end)
        elif section == _START:
            start = (at, content, end)
        at = end
    if start is None:
        return wasm
    if export is None or export[0] > start[0]:
        raise LoadError(_MALFORMED, "the start section comes before what the module exports, or nothing is exported")
    count, entries = _number(wasm, export[1])
    function = wasm[start[1] : start[2]]
    content_bytes = _encoded(count + 1) + wasm[entries : export[2]] + _ENTRY + function
    return b"".join(
        (
            wasm[: export[0] + 1],
            _encoded(len(content_bytes)),
            content_bytes,
            wasm[export[2] : start[0]],
            wasm[start[2] :],
        )
    )


def _number(wasm: bytes, at: int) -> tuple[int, int]:
    """An unsigned number of 32 bits, and where it ends."""
    value = 0
    for position, byte in enumerate(wasm[at : at + 5]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise LoadError(_MALFORMED, f"a number is cut off or too long, at byte {at}")


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))
