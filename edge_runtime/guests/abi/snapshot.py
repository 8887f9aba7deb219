"""Makes a snapshot: a module whose memory and globals are those that an initialiser has left. Pure.

`prepare` returns the module to run: it has a function more for each mutable global, which returns the global's value.
`snapshot` puts these values, and the memory's content, in the place of what the module begins with. Tables aren't read
back, so a module whose code changes them is refused, as are passive segments, which an initialiser might drop.
`join_segments` makes few data segments of many, for a module that another program has snapshotted.
Source: WebAssembly Core Specification 2.0, chapters 4.5.4 and 5.5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edge_runtime.code_section import SEGMENTS, Unknown, stateful
from edge_runtime.guests.abi import binary, extism
from edge_runtime.guests.abi.binary import Malformed
from edge_runtime.guests.abi.sections import (
    CODE,
    COUNT,
    DATA,
    EXPORT,
    FUNCTION,
    GLOBAL,
    MEMORY,
    START,
    TYPE,
    SectionCursor,
    encoded_number,
    encoded_vector,
    sections_of,
)

INITIALIZE: Final = "_initialize"
"""A library's own initialiser, which is called first, and isn't exported by the snapshot."""
BLOCK: Final = 1024
"""Bytes of zeros, at a multiple of their number, that end a data segment."""
MANY: Final = 64
"""Data segments of a module that are joined: compilers make a handful, and Wizer up to 10,000. Each costs time in
each instance."""

_PAGE: Final = 65536
_MOST_BYTES: Final = 1 << 30
"""Bytes of a memory's content that segments are joined in: the most that a node gives a function."""
_GETTERS: Final = {0x7F: ("i", b""), 0x7E: ("I", b""), 0x7D: ("i", b"\xbc"), 0x7C: ("I", b"\xbd")}
"""By value type: the type of a getter's result, and the instruction that makes it of the value (reinterpret)."""
_RESULTS: Final = {"i": 0x7F, "I": 0x7E}
_I32_CONST, _GET, _END = b"\x41", b"\x23", b"\x0b"


class SnapshotRefused(Exception):
    """No snapshot can be made of this module; the message says why, and what to do."""


@dataclass(frozen=True)
class Prepared:
    """A module that is ready to be initialised."""

    wasm: bytes
    getters: tuple[tuple[str, str], ...]
    """For each mutable global: the export that returns it, and the letter of its result."""


def prepare(wasm: bytes, initialiser: str, renewer: str = "") -> Prepared:
    """Return the module with a getter for each mutable global. `renewer` is the export that `snapshot` has each
    instance call first; '' for none.

    Raises: SnapshotRefused, when a snapshot of it would not be sound.
    """
    try:
        _check(wasm, initialiser, renewer)
        return _with_getters(wasm)
    except (Malformed, Unknown) as error:
        raise SnapshotRefused(f"It is no module that nodes can run: {error}.") from None


def snapshot(wasm: bytes, initialiser: str, memory: bytes, values: Sequence[int], renewer: str = "") -> bytes:
    """Return the snapshot: `wasm`, accepted by `prepare`, with `memory` as its memory's content, `values` as its
    mutable globals, and `renewer` as its start function. It exports neither the renewer nor what initialises it."""
    pieces = [binary.MAGIC, binary.CORE_VERSION]
    left = iter(values)

    def begun(cursor: SectionCursor) -> bytes:
        kind, mutable = cursor.take(2)
        start = cursor.at
        end = cursor.constant()
        constant = _constant(kind, next(left)) if mutable else cursor.data[start:end]
        return bytes([kind, mutable]) + constant

    for number, content in sections_of(wasm):
        match number:
            case _ if number in (START, COUNT, DATA):
                continue
            case _ if number == MEMORY:
                content = b"\1" + _memory(SectionCursor(content), len(memory) // _PAGE)
            case _ if number == GLOBAL:
                content = encoded_vector(SectionCursor(content).entries(begun))
            case _ if number == EXPORT:
                gone = {initialiser, renewer, INITIALIZE}
                kept = [entry for entry in SectionCursor(content).entries(_export) if _exported(entry) not in gone]
                content = encoded_vector(kept)
        pieces.append(_section(number, content))
        if number == EXPORT and renewer:
            pieces.append(_section(START, encoded_number(binary.read(wasm).exports[renewer][1])))
        elif number == CODE:
            pieces.append(_section(DATA, encoded_vector([_segment(*each) for each in segments(memory)])))
    return b"".join(pieces)


def join_segments(wasm: bytes) -> bytes:
    """Return a module with fewer data segments, which write the same; unchanged if it has less than `MANY`, or they
    can't be joined: if one is passive or begins at no constant, or the code uses them later."""
    try:
        sections = list(sections_of(wasm))
        content = dict(sections)
        found = _active(SectionCursor(content.get(DATA, b"\0")))
        if len(found) < MANY or not SEGMENTS.isdisjoint(stateful(content.get(CODE, b"\0"))):
            return wasm
    except (Malformed, Unknown):
        return wasm
    # In their order, as later segments replace what earlier ones wrote.
    memory = bytearray(max(address + len(data) for address, data in found))
    for address, data in found:
        memory[address : address + len(data)] = data
    whole = encoded_vector([_segment(*each) for each in segments(bytes(memory))])
    kept = [(number, whole if number == DATA else each) for number, each in sections if number != COUNT]
    return b"".join([binary.MAGIC, binary.CORE_VERSION, *(_section(*each) for each in kept)])


def _active(cursor: SectionCursor) -> list[tuple[int, bytes]]:
    """Return the data segments: addresses and bytes; [] if there are few.

    Raises: Malformed, when one is passive, or its place isn't a constant.
    """
    count = cursor.number()
    found = []
    for _ in range(count if count >= MANY else 0):
        if cursor.number() or cursor.take(1) != _I32_CONST:
            raise Malformed("a data segment isn't active at a constant address")
        address = cursor.signed() & 0xFFFFFFFF
        if cursor.take(1) != _END:
            raise Malformed("a data segment's address is computed")
        data = cursor.take(cursor.number())
        if address + len(data) > _MOST_BYTES:
            raise Malformed("a data segment lies beyond every memory")
        found.append((address, data))
    return found


def segments(memory: bytes) -> list[tuple[int, bytes]]:
    """Return what isn't zero in a memory: addresses and bytes. Gaps of less than `BLOCK` bytes are filled."""
    found: list[tuple[int, bytes]] = []
    start = None
    for at in range(0, len(memory) + BLOCK, BLOCK):
        empty = not memory[at : at + BLOCK].strip(b"\0")
        if empty and start is not None:
            data = memory[start:at].rstrip(b"\0")
            begins = len(data) - len(data := data.lstrip(b"\0"))
            found.append((start + begins, data))
            start = None
        elif not empty and start is None:
            start = at
    return found


def _check(wasm: bytes, initialiser: str, renewer: str) -> None:
    shape = binary.read(wasm)
    if extism.is_plugin(shape):
        raise SnapshotRefused("It is an Extism plug-in, whose kernel has a memory of its own.")
    if any(each.kind != binary.FUNCTION for each in shape.imports):
        raise SnapshotRefused("It imports a memory, a table or a global, whose content isn't the module's.")
    if len(shape.memories) != 1 or shape.memories[0].wide or shape.memories[0].shared:
        raise SnapshotRefused("It must have exactly one memory, with 32-bit addresses, that no other thread uses.")
    for name in filter(None, (initialiser, renewer)):
        signature = shape.export_signature(name)
        if signature is None:
            functions = [each for each, (kind, _) in shape.exports.items() if kind == binary.FUNCTION]
            raise SnapshotRefused(f"It exports no function {name} (it exports {', '.join(functions[:8]) or 'none'}).")
        if signature != ("", ""):
            raise SnapshotRefused(f"Its {name} takes or returns values; it must be a function without either.")
    if not shape.functions:
        raise SnapshotRefused("It has no function of its own.")
    code = dict(sections_of(wasm)).get(CODE, b"\0")
    if found := next(stateful(code), ""):
        raise SnapshotRefused(
            f"Its code has {found}, and a snapshot keeps neither tables nor passive data: build it without threads and "
            "without dynamic linking."
        )


def _with_getters(wasm: bytes) -> Prepared:
    sections = list(sections_of(wasm))
    content = dict(sections)
    found = [
        (index, *_GETTERS[kind])
        for index, (kind, mutable) in enumerate(_globals(content.get(GLOBAL, b"\0")))
        if mutable
    ]
    names = tuple((f"skerry: global {index}", result) for index, result, _ in found)
    types = SectionCursor(content[TYPE]).number()
    first = len(binary.read(wasm).imports) + SectionCursor(content[FUNCTION]).number()
    more = {
        TYPE: [bytes([0x60, 0, 1, kind]) for kind in _RESULTS.values()],
        FUNCTION: [encoded_number(types + list(_RESULTS).index(result)) for _, result, _ in found],
        EXPORT: [
            encoded_number(len(name)) + name.encode() + bytes([binary.FUNCTION]) + encoded_number(first + position)
            for position, (name, _) in enumerate(names)
        ],
        CODE: [_sized(b"\0" + _GET + encoded_number(index) + turn + _END) for index, _, turn in found],
    }
    pieces = [binary.MAGIC, binary.CORE_VERSION]
    for number, each in sections:
        if number in more:
            cursor = SectionCursor(each)
            count = cursor.number() + len(more[number])
            each = encoded_number(count) + each[cursor.at :] + b"".join(more[number])
        pieces.append(_section(number, each))
    return Prepared(b"".join(pieces), names)


def _globals(content: bytes) -> list[tuple[int, bool]]:
    """Return the value type of each global, and whether it is mutable.

    Raises: SnapshotRefused, when a mutable one has a type whose values can't be read.
    """
    cursor = SectionCursor(content)
    found = []
    for _ in range(cursor.number()):
        kind, mutable = cursor.take(2)
        cursor.constant()
        if mutable and kind not in _GETTERS:
            raise SnapshotRefused("It has a mutable global that is a vector or a reference, which can't be kept.")
        found.append((kind, bool(mutable)))
    return found


def _constant(kind: int, value: int) -> bytes:
    """Return the constant expression for a value of a type, given as an unsigned number."""
    match kind:
        case 0x7F:
            return b"\x41" + _signed(value, 32) + _END
        case 0x7E:
            return b"\x42" + _signed(value, 64) + _END
        case 0x7D:
            return b"\x43" + value.to_bytes(4, "little") + _END
        case _:
            return b"\x44" + value.to_bytes(8, "little") + _END


def _memory(cursor: SectionCursor, pages: int) -> bytes:
    """Return a memory's limits with another minimum."""
    cursor.number()
    flags = cursor.byte()
    cursor.number()
    most = encoded_number(cursor.number()) if flags & 1 else b""
    return bytes([flags]) + encoded_number(pages) + most


def _segment(address: int, data: bytes) -> bytes:
    return b"\0" + _I32_CONST + _signed(address, 32) + _END + _sized(data)


def _export(cursor: SectionCursor) -> None:
    cursor.sized()
    cursor.byte()
    cursor.number()


def _exported(entry: bytes) -> str:
    return SectionCursor(entry).name()


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + _sized(content)


def _sized(content: bytes) -> bytes:
    return encoded_number(len(content)) + content


def _signed(value: int, bits: int) -> bytes:
    """Return a number, given as unsigned, as signed LEB128."""
    value -= value >> (bits - 1) << bits
    encoded = bytearray()
    while not -64 <= value < 64:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value & 0x7F))
