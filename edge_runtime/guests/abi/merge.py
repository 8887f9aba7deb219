"""Puts the functions of the Extism kernel into a plug-in, in place of the imported ones. Pure.

A call of an imported function costs 230 ns in AOT code, and a PDK makes one for every eight bytes; the module's own
functions are inlined. The kernel's memory becomes the module's second memory, so that both are fresh for each call.
Removing imports changes the numbers of all functions, so every reference to a function in the module is found and
rewritten (WebAssembly Core Specification 2.0, chapter 5).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.guests.abi import binary
from edge_runtime.guests.abi.binary import Malformed
from edge_runtime.guests.abi.code_section import NUMBER, TABLE_GROW, Unknown, notable
from edge_runtime.guests.abi.extism import ENV

KERNEL_MEMORY = f"{ENV} memory"
"""The name under which the merged module exports the kernel's memory."""

_CUSTOM, _TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT, _CODE, _DATA, _COUNT = range(
    13
)
_ORDER = (_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _GLOBAL, _EXPORT, _START, _ELEMENT, _COUNT, _CODE, _DATA)

_CONSTANT = re.compile(
    rb"(?s:(?:[\x23\x41\x42\xd0\xd2]" + NUMBER + rb"|\x43.{4}|\x44.{8}|\xfd\x0c.{16})*+\x0b)"
)  # fmt: skip
"""A constant expression."""


@dataclass(frozen=True)
class Kernel:
    """The parts of the kernel's module."""

    types: list[bytes]
    functions: dict[str, tuple[int, bytes]]
    """By export: the number of the function's type, and its body with the length before it."""
    memory: bytes
    """The limits of its own memory, which becomes the second one."""


def _kernel() -> Kernel:
    wasm = (Path(__file__).parent / "kernel.wasm").read_bytes()
    sections = {number: _SectionCursor(content) for number, content in _sections(wasm)}
    types = sections[_TYPE].entries(_SectionCursor.signature)
    kinds = [entry[0] for entry in sections[_FUNCTION].entries(_SectionCursor.number)]
    bodies = sections[_CODE].entries(_SectionCursor.sized)
    memories = sections[_MEMORY].entries(_SectionCursor.limits)
    exports = {name: index for name, (kind, index) in binary.read(wasm).exports.items() if kind == binary.FUNCTION}
    return Kernel(types, {name: (kinds[i], bodies[i]) for name, i in exports.items()}, memories[1])


def merge(wasm: bytes) -> bytes:
    """Return the plug-in with the kernel in it. `wasm` must be valid, and accepted by `detect`.

    Raises: Malformed, when it contains something that the merge doesn't know.
    """
    # Custom sections are dropped: they refer to functions by the old numbers.
    sections = {number: content for number, content in _sections(wasm) if number != _CUSTOM}
    return b"".join([binary.MAGIC, binary.CORE_VERSION, *_Merger(sections).merged()])


class _Merger:
    def __init__(self, sections: dict[int, bytes]) -> None:
        self._sections = sections
        self._imports, names = self._split_imports()
        added = list(dict.fromkeys(name for name in names if name))
        """The kernel's functions that the plug-in imports."""
        own, kept = self._count(_FUNCTION), len([name for name in names if not name])
        after = iter(range(kept))
        first = {name: kept + own + position for position, name in enumerate(added)}
        self._numbers = [first[name] if name else next(after) for name in names] + list(range(kept, kept + own))
        """The new number of each function, by its old one."""
        self._added = [_KERNEL.functions[name] for name in added]

    def merged(self) -> Iterator[bytes]:
        types, known = _KERNEL.types, self._count(_TYPE)
        rewritten: dict[int, Callable[[_SectionCursor], bytes]] = {
            _TYPE: lambda reader: _vector(reader.entries(_SectionCursor.signature), types),
            _IMPORT: lambda _: _vector(self._imports),
            _FUNCTION: lambda reader: _vector(
                reader.entries(_SectionCursor.number), [_number(known + kind) for kind, _ in self._added]
            ),
            _MEMORY: lambda reader: _vector(reader.entries(_memory), [_KERNEL.memory]),
            _GLOBAL: lambda reader: _vector(reader.entries(self._global)),
            _EXPORT: lambda reader: _vector(reader.entries(self._export), [_EXPORTED]),
            _START: self._function,
            _ELEMENT: lambda reader: _vector(reader.entries(self._element)),
            _CODE: lambda reader: _vector(reader.entries(self._body), [body for _, body in self._added]),
        }
        for number in _ORDER:
            if number in self._sections or number in (_FUNCTION, _CODE):
                content = self._sections.get(number, b"\0")
                if number in rewritten:
                    content = rewritten[number](_SectionCursor(content))
                yield bytes([number]) + _number(len(content)) + content

    def _count(self, section: int) -> int:
        return _SectionCursor(self._sections.get(section, b"\0")).number()

    def _split_imports(self) -> tuple[list[bytes], list[str]]:
        """Return the imports that stay, and for each imported function its name in the kernel, empty for those that
        stay."""
        reader = _SectionCursor(self._sections.get(_IMPORT, b"\0"))
        kept, names = [], []
        for _ in range(reader.number()):
            start = reader.at
            module, name, kind = reader.name(), reader.name(), reader.byte()
            if kind != binary.FUNCTION:
                raise Malformed(f"the import {module}.{name} is no function")
            reader.number()
            kernel_name = name if module == ENV and name in _KERNEL.functions else ""
            names.append(kernel_name)
            if not kernel_name:
                kept.append(reader.data[start : reader.at])
        return kept, names

    def _function(self, reader: "_SectionCursor") -> bytes:
        index = reader.number()
        if index >= len(self._numbers):
            raise Malformed(f"the function {index} does not exist")
        return _number(self._numbers[index])

    def _constant(self, reader: "_SectionCursor") -> bytes:
        start = reader.at
        return self._instructions(reader.data, start, reader.constant())

    def _global(self, reader: "_SectionCursor") -> bytes:
        return reader.take(2) + self._constant(reader)

    def _export(self, reader: "_SectionCursor") -> bytes:
        start = reader.at
        reader.take(reader.number())
        head, kind = reader.data[start : reader.at + 1], reader.byte()
        return head + (self._function(reader) if kind == binary.FUNCTION else _number(reader.number()))

    def _element(self, reader: "_SectionCursor") -> bytes:
        """Rewrite an element segment. Bits of its flags: 1 passive or declared, 2 with a table index or declared, 4
        with expressions."""
        flags = reader.number()
        pieces = [_number(flags)]
        if not flags & 1:
            if flags & 2:
                pieces.append(_number(reader.number()))
            pieces.append(self._constant(reader))
        if flags & 3:
            pieces.append(reader.take(1))
        pieces.append(_vector(reader.entries(self._constant if flags & 4 else self._function)))
        return b"".join(pieces)

    def _body(self, reader: "_SectionCursor") -> bytes:
        end = reader.number()
        start = reader.at
        end += start
        for _ in range(reader.number()):
            reader.number()
            reader.byte()
        body = reader.data[start : reader.at] + self._instructions(reader.data, reader.at, end)
        reader.at = end
        return _number(len(body)) + body

    def _instructions(self, data: bytes, at: int, end: int) -> bytes:
        pieces: list[bytes] = []
        copied = at
        try:
            for opcode, place in notable(data, at, end):
                if opcode != TABLE_GROW:
                    reader = _SectionCursor(data, place)
                    pieces += (data[copied:place], self._function(reader))
                    copied = reader.at
        except Unknown as unknown:
            raise Malformed(str(unknown)) from None
        return b"".join((*pieces, data[copied:end]))


class _SectionCursor:
    """A position in a section of valid bytes."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
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
        match = _CONSTANT.match(self.data, self.at)
        if match is None:
            raise Malformed(
                "a constant expression has an instruction that is unknown or of a proposal that nodes don't run"
            )
        self.at = match.end()
        return self.at

    def entries(self, entry: "Callable[[_SectionCursor], object]") -> list[bytes]:
        """Return the entries of a vector: what `entry` returns or, if that is None, the bytes that it passed over."""
        entries = []
        for _ in range(self.number()):
            start, entry_bytes = self.at, entry(self)
            entries.append(entry_bytes if isinstance(entry_bytes, bytes) else self.data[start : self.at])
        return entries


def _sections(wasm: bytes) -> Iterator[tuple[int, bytes]]:
    reader = _SectionCursor(wasm, 8)
    while reader.at < len(wasm):
        yield reader.byte(), reader.take(reader.number())


def _memory(reader: _SectionCursor) -> bytes:
    """Return a memory's limits with at least one page: a module of AssemblyScript may start with none, and a guest
    without a page isn't run."""
    flags, minimum = reader.byte(), max(1, reader.number())
    return bytes([flags]) + _number(minimum) + (_number(max(minimum, reader.number())) if flags & 1 else b"")


def _vector(entries: list[bytes], more: Sequence[bytes] = ()) -> bytes:
    return b"".join((_number(len(entries) + len(more)), *entries, *more))


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


_EXPORTED = _number(len(KERNEL_MEMORY)) + KERNEL_MEMORY.encode() + bytes([binary.MEMORY, 1])

_KERNEL = _kernel()
"""Read from kernel.wasm, which is built from kernel.wat; at import, since a fenced process can't read it."""
