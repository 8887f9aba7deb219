"""Splits a snapshot into its engine's code and the image of its memory, where that is sound. Pure.

A snapshot is a module made by running an initialiser and keeping its memory, so it has its state as active data
segments. What they write is known before any code runs: instantiation copies them, in order, to constant places of a
memory of zeros. So a memory that has these bytes already, and the module without the segments, are the same instance
(docs/adr/0076). Source: WebAssembly Core Specification 2.0, chapters 4.5.4 and 5.5.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import BinaryIO, Final

from edge_runtime.code_section import copies_segments
from edge_runtime.wasmedge.errors import LoadError
from edge_runtime.wasmedge.memory_imports import CORE, encoded, joined, number, sections

LEAST: Final = 256 * 1024
"""Bytes of active data from which a module is split: copying fewer costs less than mapping an image does."""

_PAGE: Final = 65536
_MOST_PAGES: Final = 65536
_CUSTOM, _IMPORT, _MEMORY, _CODE, _DATA, _COUNT = 0, 2, 5, 10, 11, 12
_ORDER: Final = (1, _IMPORT, 3, 4, _MEMORY, 6, 7, 8, 9, _COUNT, _CODE, _DATA)
"""The numbers of the sections, in the order in which a valid module has them."""
_FUNCTION: Final = 0
_I32_CONST, _END = 0x41, 0x0B
_ACTIVE, _ACTIVE_IN = 0, 2
"""Flags of active data segments: in memory 0, and in a memory that is named."""


@dataclass(frozen=True)
class Split:
    """A snapshot in two parts."""

    code: bytes
    """The engine: a module without data segments, whose memory starts with one page. All snapshots of one engine have
    the same."""
    pages: int
    """Pages of 64 KiB of the image: those that the snapshot's memory starts with."""
    segments: list[tuple[int, bytes]]
    """What the image has other than zeros: bytes with their addresses, of which later ones replace earlier ones."""

    @functools.cached_property
    def sha256(self) -> str:
        """The sha256 of `code`, in hex."""
        return hashlib.sha256(self.code).hexdigest()

    def write_image(self, file: BinaryIO) -> None:
        """Write the image into an empty file, which gets holes where nothing but zeros is. Raises: OSError."""
        for address, data in self.segments:
            file.seek(address)
            file.write(data)
        file.truncate(self.pages * _PAGE)


class _Whole(Exception):
    """The module can't be split."""


def split(wasm: bytes) -> Split | None:
    """Split a valid module; return None if it must stay whole, or has less than `LEAST` bytes of active data.

    It must stay whole if its code has memory.init or data.drop, for which segments must be there; if a segment is
    passive, or its place isn't a constant within the memory that the module starts with; and if it doesn't have exactly
    one memory, its own.
    """
    if not wasm.startswith(CORE):
        return None
    try:
        return _split([(section, content) for section, content in sections(wasm) if section != _CUSTOM])
    except (_Whole, LoadError, IndexError):
        return None


def _split(found: list[tuple[int, bytes]]) -> Split | None:
    order = [_ORDER.index(section) if section in _ORDER else -1 for section, _ in found]
    if order != sorted(set(order)) or -1 in order:
        raise _Whole
    by_number = dict(found)
    if _MEMORY not in by_number or _DATA not in by_number or len(by_number[_DATA]) < LEAST:
        return None
    _check_imports(by_number.get(_IMPORT, b"\0"))
    pages, memory = _normalised(by_number[_MEMORY])
    segments = _segments(by_number[_DATA], pages * _PAGE)
    if _COUNT in by_number and number(by_number[_COUNT], 0)[0] != len(segments):
        raise _Whole
    if sum(len(data) for _, data in segments) < LEAST:
        return None
    code = by_number.get(_CODE, b"\0")
    if copies_segments(code, 0, len(code)):
        raise _Whole
    kept = [(section, content) for section, content in found if section not in (_DATA, _COUNT)]
    return Split(
        joined([(section, memory if section == _MEMORY else content) for section, content in kept]), pages, segments
    )


def _check_imports(imports: bytes) -> None:
    """Check that only functions are imported, as nodes have it anyway."""
    count, at = number(imports, 0)
    for _ in range(count):
        for _ in ("module", "name"):
            size, at = number(imports, at)
            at += size
        if imports[at] != _FUNCTION:
            raise _Whole
        at = number(imports, at + 1)[1]


def _normalised(memories: bytes) -> tuple[int, bytes]:
    """Return the pages that the only memory starts with, and the section for a memory that starts with one."""
    count, at = number(memories, 0)
    # Other flags are of memories that are shared, or have 64-bit addresses.
    if count != 1 or memories[at] > 1:
        raise _Whole
    pages, end = number(memories, at + 1)
    if not 1 <= pages <= _MOST_PAGES:
        raise _Whole
    return pages, memories[: at + 1] + encoded(1) + memories[end:]


def _segments(data: bytes, size: int) -> list[tuple[int, bytes]]:
    count, at = number(data, 0)
    segments = []
    for _ in range(count):
        flag, at = number(data, at)
        if flag == _ACTIVE_IN:
            memory, at = number(data, at)
            if memory:
                raise _Whole
        elif flag != _ACTIVE:
            raise _Whole
        if data[at] != _I32_CONST:
            raise _Whole
        address, at = _constant(data, at + 1)
        if data[at] != _END:
            raise _Whole
        length, start = number(data, at + 1)
        at = start + length
        if at > len(data) or address + length > size:
            raise _Whole
        segments.append((address, data[start:at]))
    if at != len(data):
        raise _Whole
    return segments


def _constant(data: bytes, at: int) -> tuple[int, int]:
    """Return an i32 (signed LEB128) as the address that it is, and the position after it."""
    value, end = number(data, at)
    bits = 7 * (end - at)
    if bits < 32 and data[end - 1] & 0x40:
        value -= 1 << bits
    return value & 0xFFFFFFFF, end
