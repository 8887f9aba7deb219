"""Reads from a core module's bytes what decides whether a node can run it: its imports, memories, tables and exports.
Pure.

WasmEdge validates the rest, function bodies included. Source: WebAssembly Core Specification 2.0, chapter 5 (binary
format).
"""

import contextlib
from dataclasses import dataclass, field

from edge_runtime.code_section import grows_tables, local_variables

MAGIC = b"\0asm"
CORE_VERSION = b"\1\0\0\0"
COMPONENT_VERSION = b"\x0d\0\1\0"

FUNCTION, TABLE, MEMORY, GLOBAL, TAG = range(5)
KINDS = ("function", "table", "memory", "global", "tag")

_TYPES, _IMPORTS, _FUNCTIONS, _TABLES, _MEMORIES, _EXPORTS, _START, _CODE = 1, 2, 3, 4, 5, 7, 8, 10
_VALUE_TYPES = {0x7F: "i", 0x7E: "I", 0x7D: "f", 0x7C: "F", 0x7B: "v", 0x70: "r", 0x6F: "e"}
_GC_FORMS = (0x4E, 0x4F, 0x50, 0x5E, 0x5F)
"""A recursive group, a subtype, final or not, an array, and a struct."""
_CUSTOM = 0
_MOST_SECTIONS = 10_000
"""The most sections of a module, custom ones included: each costs the loader a hundred bytes."""
_MOST = 1_000_000
"""The most entries of a section: the common limit of engines (the WebAssembly JS API's limits)."""

Signature = tuple[str, str]
"""Types of parameters and results, one letter each: i32 `i`, i64 `I`, f32 `f`, f64 `F`, v128 `v`, references `r` and
`e`."""


class Malformed(ValueError):
    """The bytes aren't a core module; the message says where they are wrong."""


class GarbageCollected(Malformed):
    """The module has types of the garbage collection proposal."""


@dataclass(frozen=True)
class ResizableLimits:
    """The specification's `limits`: in pages of 64 KiB for a memory, in entries for a table."""

    minimum: int
    maximum: int | None
    shared: bool = False
    wide: bool = False
    """Whether addresses have 64 bits."""


@dataclass(frozen=True)
class Import:
    module: str
    name: str
    kind: int
    signature: Signature | None = None
    """The signature of an imported function; None for any other kind."""


@dataclass
class Shape:
    """A module's interface, and what decides how much it costs."""

    imports: list[Import] = field(default_factory=list)
    memories: list[ResizableLimits] = field(default_factory=list)
    """The memories that it defines itself."""
    tables: list[ResizableLimits] = field(default_factory=list)
    """The tables that it defines itself."""
    exports: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By name: the kind of the export and its index."""
    signatures: list[Signature] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    """For each function that the module defines itself, the index of its type in `signatures`."""
    native: bool = False
    """Whether it has machine code, in the custom section that WasmEdge would load."""
    start: bool = False
    """Whether it has a `start` section, which runs when the module is instantiated."""
    may_grow_tables: bool = False
    """Whether its code has the instruction table.grow, or can't be decoded."""
    most_locals: int = 0
    """The number of local variables of the function that has the most."""
    locals: int = 0
    """The number of local variables of all functions together."""

    def export_signature(self, name: str) -> Signature | None:
        """Return the signature of an exported function; None if no function has that name.

        Raises: Malformed, when the export names a function that doesn't exist.
        """
        kind, index = self.exports.get(name, (None, 0))
        if kind != FUNCTION:
            return None
        imported = [each.signature for each in self.imports if each.kind == FUNCTION]
        if index < len(imported):
            return imported[index]
        try:
            return self.signatures[self.functions[index - len(imported)]]
        except IndexError:
            raise Malformed(f"the export {name} names a function that does not exist") from None


def read(wasm: bytes) -> Shape:
    """Parse a core module.

    Raises: Malformed, when the bytes aren't one.
    """
    if wasm[:4] != MAGIC:
        raise Malformed("the bytes don't begin with those of a WebAssembly module (00 61 73 6d)")
    if wasm[4:8] != CORE_VERSION:
        raise Malformed(f"its version is {wasm[4:8].hex(' ')}, and not that of a core module (01 00 00 00)")
    shape, at, count = Shape(), 8, 0
    while at < len(wasm):
        count += 1
        if count > _MOST_SECTIONS:
            raise Malformed(f"it has more than {_MOST_SECTIONS} sections")
        section = wasm[at]
        outer = _SectionReader(wasm, at + 1, len(wasm))
        size = outer.unsigned()
        at = outer.at + size
        if at > len(wasm):
            raise Malformed(f"section {section} is cut off: it should have {size} bytes")
        _section(shape, section, _SectionReader(wasm, outer.at, at))
    return shape


def _section(shape: Shape, section: int, reader: "_SectionReader") -> None:
    if section == _CUSTOM:
        # The names of other custom sections don't matter, valid or not.
        with contextlib.suppress(Malformed):
            shape.native |= reader.name() == "wasmedge"
    elif section == _TYPES:
        shape.signatures += [reader.signature() for _ in range(reader.count())]
    elif section == _IMPORTS:
        shape.imports += [reader.imported(shape.signatures) for _ in range(reader.count())]
    elif section == _FUNCTIONS:
        shape.functions += [reader.unsigned() for _ in range(reader.count())]
    elif section == _TABLES:
        shape.tables += [reader.table() for _ in range(reader.count())]
    elif section == _MEMORIES:
        shape.memories += [reader.limits() for _ in range(reader.count())]
    elif section == _EXPORTS:
        for _ in range(reader.count()):
            name = reader.name()
            shape.exports[name] = (reader.byte(), reader.unsigned())
    elif section == _START:
        shape.start = True
    elif section == _CODE:
        shape.may_grow_tables = grows_tables(reader.data, reader.at, reader.end)
        shape.most_locals, shape.locals = local_variables(reader.data, reader.at, reader.end)


class _SectionReader:
    """A position in a section, with the checks that untrusted bytes need."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end

    def byte(self) -> int:
        if self.at >= self.end:
            raise Malformed(f"a section ends too early, at byte {self.at}")
        self.at += 1
        return self.data[self.at - 1]

    def unsigned(self, bits: int = 32) -> int:
        value = shift = 0
        while shift < bits:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> bits:
                    break
                return value
            shift += 7
        raise Malformed(f"a number of more than {bits} bits, at byte {self.at}")

    def count(self) -> int:
        count = self.unsigned()
        if count > _MOST:
            raise Malformed(f"a section with {count} entries; {_MOST} are the most")
        return count

    def name(self) -> str:
        length = self.unsigned()
        raw = self.data[self.at : min(self.at + length, self.end)]
        self.at += length
        if len(raw) != length:
            raise Malformed(f"a name of {length} bytes is cut off")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise Malformed(f"the name {raw[:40]!r} is not UTF-8") from None

    def value_type(self) -> str:
        byte = self.byte()
        if byte not in _VALUE_TYPES:
            raise Malformed(
                f"the value type {byte:#x}, at byte {self.at - 1}, is unknown or of a proposal that nodes don't run"
            )
        return _VALUE_TYPES[byte]

    def signature(self) -> Signature:
        form = self.byte()
        if form in _GC_FORMS:
            raise GarbageCollected(f"the type form {form:#x} is one of the garbage collection proposal")
        if form != 0x60:
            raise Malformed(f"the type form {form:#x} is unknown or of a proposal that nodes don't run")
        parameters = "".join([self.value_type() for _ in range(self.count())])
        return parameters, "".join([self.value_type() for _ in range(self.count())])

    def limits(self) -> ResizableLimits:
        flags = self.byte()
        if flags > 7:
            raise Malformed(f"the limits flag {flags:#x} is unknown")
        bits = 64 if flags & 4 else 32
        minimum = self.unsigned(bits)
        return ResizableLimits(minimum, self.unsigned(bits) if flags & 1 else None, bool(flags & 2), bool(flags & 4))

    def table(self) -> ResizableLimits:
        self.value_type()
        return self.limits()

    def imported(self, signatures: list[Signature]) -> Import:
        module, name, kind = self.name(), self.name(), self.byte()
        if kind == FUNCTION:
            index = self.unsigned()
            if index >= len(signatures):
                raise Malformed(f"the import {module}.{name} has the type {index}, which does not exist")
            return Import(module, name, kind, signatures[index])
        if kind == TABLE:
            self.table()
        elif kind == MEMORY:
            self.limits()
        elif kind == GLOBAL:
            self.value_type()
            self.byte()
        elif kind == TAG:
            self.byte()
            self.unsigned()
        else:
            raise Malformed(f"the import {module}.{name} is of the unknown kind {kind}")
        return Import(module, name, kind)
