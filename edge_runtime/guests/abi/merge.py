"""Puts the functions of the Extism kernel into a plug-in, in place of the imported ones. Pure.

A call of an imported function costs 230 ns in AOT code, and a PDK makes one for every eight bytes; the module's own
functions are inlined. The kernel's memory becomes the module's second memory, so that both are fresh for each call.
Removing imports changes the numbers of all functions, so every reference to a function in the module is found and
rewritten (WebAssembly Core Specification 2.0, chapter 5).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.code_section import CALL, REF_FUNC, Unknown, notable
from edge_runtime.guests.abi import binary
from edge_runtime.guests.abi.binary import Malformed
from edge_runtime.guests.abi.extism import ENV
from edge_runtime.guests.abi.sections import (
    CODE,
    CUSTOM,
    ELEMENT,
    EXPORT,
    FUNCTION,
    GLOBAL,
    IMPORT,
    MEMORY,
    ORDER,
    START,
    TYPE,
    SectionCursor,
    encoded_number,
    encoded_vector,
    sections_of,
)

KERNEL_MEMORY = f"{ENV} memory"
"""The name under which the merged module exports the kernel's memory."""


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
    sections = {number: SectionCursor(content) for number, content in sections_of(wasm)}
    types = sections[TYPE].entries(SectionCursor.signature)
    kinds = [entry[0] for entry in sections[FUNCTION].entries(SectionCursor.number)]
    bodies = sections[CODE].entries(SectionCursor.sized)
    memories = sections[MEMORY].entries(SectionCursor.limits)
    exports = {name: index for name, (kind, index) in binary.read(wasm).exports.items() if kind == binary.FUNCTION}
    return Kernel(types, {name: (kinds[i], bodies[i]) for name, i in exports.items()}, memories[1])


def merge(wasm: bytes) -> bytes:
    """Return the plug-in with the kernel in it. `wasm` must be valid, and accepted by `detect`.

    Raises: Malformed, when it contains something that the merge doesn't know.
    """
    # Custom sections are dropped: they refer to functions by the old numbers.
    sections = {number: content for number, content in sections_of(wasm) if number != CUSTOM}
    return b"".join([binary.MAGIC, binary.CORE_VERSION, *_Merger(sections).merged()])


class _Merger:
    def __init__(self, sections: dict[int, bytes]) -> None:
        self._sections = sections
        self._imports, names = self._split_imports()
        added = list(dict.fromkeys(name for name in names if name))
        """The kernel's functions that the plug-in imports."""
        own, kept = self._count(FUNCTION), len([name for name in names if not name])
        after = iter(range(kept))
        first = {name: kept + own + position for position, name in enumerate(added)}
        self._numbers = [first[name] if name else next(after) for name in names] + list(range(kept, kept + own))
        """The new number of each function, by its old one."""
        self._added = [_KERNEL.functions[name] for name in added]

    def merged(self) -> Iterator[bytes]:
        types, known = _KERNEL.types, self._count(TYPE)
        rewritten: dict[int, Callable[[SectionCursor], bytes]] = {
            TYPE: lambda reader: encoded_vector(reader.entries(SectionCursor.signature), types),
            IMPORT: lambda _: encoded_vector(self._imports),
            FUNCTION: lambda reader: encoded_vector(
                reader.entries(SectionCursor.number), [encoded_number(known + kind) for kind, _ in self._added]
            ),
            MEMORY: lambda reader: encoded_vector(reader.entries(_memory), [_KERNEL.memory]),
            GLOBAL: lambda reader: encoded_vector(reader.entries(self._global)),
            EXPORT: lambda reader: encoded_vector(reader.entries(self._export), [_EXPORTED]),
            START: self._function,
            ELEMENT: lambda reader: encoded_vector(reader.entries(self._element)),
            CODE: lambda reader: encoded_vector(reader.entries(self._body), [body for _, body in self._added]),
        }
        for number in ORDER:
            if number in self._sections or number in (FUNCTION, CODE):
                content = self._sections.get(number, b"\0")
                if number in rewritten:
                    content = rewritten[number](SectionCursor(content))
                yield bytes([number]) + encoded_number(len(content)) + content

    def _count(self, section: int) -> int:
        return SectionCursor(self._sections.get(section, b"\0")).number()

    def _split_imports(self) -> tuple[list[bytes], list[str]]:
        """Return the imports that stay, and for each imported function its name in the kernel, empty for those that
        stay."""
        reader = SectionCursor(self._sections.get(IMPORT, b"\0"))
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

    def _function(self, reader: "SectionCursor") -> bytes:
        index = reader.number()
        if index >= len(self._numbers):
            raise Malformed(f"the function {index} does not exist")
        return encoded_number(self._numbers[index])

    def _constant(self, reader: "SectionCursor") -> bytes:
        start = reader.at
        return self._instructions(reader.data, start, reader.constant())

    def _global(self, reader: "SectionCursor") -> bytes:
        return reader.take(2) + self._constant(reader)

    def _export(self, reader: "SectionCursor") -> bytes:
        start = reader.at
        reader.take(reader.number())
        head, kind = reader.data[start : reader.at + 1], reader.byte()
        return head + (self._function(reader) if kind == binary.FUNCTION else encoded_number(reader.number()))

    def _element(self, reader: "SectionCursor") -> bytes:
        """Rewrite an element segment. Bits of its flags: 1 passive or declared, 2 with a table index or declared, 4
        with expressions."""
        flags = reader.number()
        pieces = [encoded_number(flags)]
        if not flags & 1:
            if flags & 2:
                pieces.append(encoded_number(reader.number()))
            pieces.append(self._constant(reader))
        if flags & 3:
            pieces.append(reader.take(1))
        pieces.append(encoded_vector(reader.entries(self._constant if flags & 4 else self._function)))
        return b"".join(pieces)

    def _body(self, reader: "SectionCursor") -> bytes:
        end = reader.number()
        start = reader.at
        end += start
        for _ in range(reader.number()):
            reader.number()
            reader.byte()
        body = reader.data[start : reader.at] + self._instructions(reader.data, reader.at, end)
        reader.at = end
        return encoded_number(len(body)) + body

    def _instructions(self, data: bytes, at: int, end: int) -> bytes:
        pieces: list[bytes] = []
        copied = at
        try:
            for opcode, place in notable(data, at, end):
                if opcode in (CALL, REF_FUNC):
                    reader = SectionCursor(data, place)
                    pieces += (data[copied:place], self._function(reader))
                    copied = reader.at
        except Unknown as unknown:
            raise Malformed(str(unknown)) from None
        return b"".join((*pieces, data[copied:end]))


def _memory(reader: SectionCursor) -> bytes:
    """Return a memory's limits with at least one page: a module of AssemblyScript may start with none, and a guest
    without a page isn't run."""
    flags, minimum = reader.byte(), max(1, reader.number())
    return (
        bytes([flags]) + encoded_number(minimum) + (encoded_number(max(minimum, reader.number())) if flags & 1 else b"")
    )


_EXPORTED = encoded_number(len(KERNEL_MEMORY)) + KERNEL_MEMORY.encode() + bytes([binary.MEMORY, 1])

_KERNEL = _kernel()
"""Read from kernel.wasm, which is built from kernel.wat; at import, since a fenced process can't read it."""
