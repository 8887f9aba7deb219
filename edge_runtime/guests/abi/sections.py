"""Reads and writes the sections of a valid core module. Pure.

Source: WebAssembly Core Specification 2.0, chapter 5.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from edge_runtime.code_section import NUMBER
from edge_runtime.guests.abi.binary import Malformed

CUSTOM, TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, CODE, DATA, COUNT = range(13)
ORDER = (TYPE, IMPORT, FUNCTION, TABLE, MEMORY, GLOBAL, EXPORT, START, ELEMENT, COUNT, CODE, DATA)

CONSTANT = re.compile(
    rb"(?s:(?:[\x23\x41\x42\xd0\xd2]" + NUMBER + rb"|\x43.{4}|\x44.{8}|\xfd\x0c.{16})*+\x0b)"
)  # fmt: skip
"""A constant expression."""


class SectionCursor:
    """A position in a section of valid bytes."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        """Raises: Malformed, when the section has ended, like everything here."""
        return self.take(1)[0]

    def take(self, length: int) -> bytes:
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise Malformed("a section ends too early")
        return self.data[start : self.at]

    def number(self) -> int:
        """An unsigned LEB128 number of 32 bits."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def signed(self) -> int:
        """A signed LEB128 number of up to 64 bits."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if byte & 0x40 else value

    def name(self) -> str:
        return self.take(self.number()).decode()

    def sized(self) -> None:
        self.take(self.number())

    def signature(self) -> None:
        self.byte()
        self.take(self.number())
        self.take(self.number())

    def limits(self) -> None:
        if self.byte() & 1:
            self.number()
        self.number()

    def constant(self) -> int:
        """Return the position after the constant expression that begins here."""
        match = CONSTANT.match(self.data, self.at)
        if match is None:
            raise Malformed(
                "a constant expression has an instruction that is unknown or of a proposal that nodes don't run"
            )
        self.at = match.end()
        return self.at

    def entries(self, entry: "Callable[[SectionCursor], object]") -> list[bytes]:
        """Return the entries of a vector: what `entry` returns or, if that is None, the bytes that it passed over."""
        entries = []
        for _ in range(self.number()):
            start, entry_bytes = self.at, entry(self)
            entries.append(entry_bytes if isinstance(entry_bytes, bytes) else self.data[start : self.at])
        return entries


def sections_of(wasm: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the content of each section. Raises: Malformed, when one is cut off."""
    reader = SectionCursor(wasm, 8)
    while reader.at < len(wasm):
        yield reader.byte(), reader.take(reader.number())


def encoded_vector(entries: list[bytes], more: Sequence[bytes] = ()) -> bytes:
    """Return a vector of these entries, each of them encoded."""
    return b"".join((encoded_number(len(entries) + len(more)), *entries, *more))


def encoded_number(value: int) -> bytes:
    """Return an unsigned number as LEB128."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))
