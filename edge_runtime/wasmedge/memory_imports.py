"""Makes of a module the one that is run: its memories are imported. Pure.

So they are reserved, and checked, before anything of the guest runs, its start section included; and they outlive the
instance (docs/adr/0018).
Source: WebAssembly Core Specification 2.0, chapter 5.5.
"""

from typing import Final

from edge_runtime.wasmedge.errors import LoadError

MODULE: Final = "skerry: memory"
"""The module of the imports, whose names are the memories' numbers. Modules that import a memory are refused at
upload."""

_CORE: Final = b"\0asm\1\0\0\0"
_TYPE, _IMPORT, _MEMORY = 1, 2, 5
_AS_MEMORY: Final = b"\2"
_MALFORMED: Final = 0x0104
"""WasmEdge's code for a section that is cut off."""


def import_memories(wasm: bytes) -> bytes:
    """The same module with its memories imported, unchanged where it has none. Error: LoadError, where its sections
    can't be told apart."""
    if not wasm.startswith(_CORE):
        return wasm
    sections = _sections(wasm)
    numbers = [number for number, _ in sections]
    if _MEMORY not in numbers:
        return wasm
    if numbers.count(_MEMORY) > 1 or numbers.count(_IMPORT) > 1:
        raise LoadError(_MALFORMED, "a section is there twice")
    at = numbers.index(_MEMORY)
    if max(numbers[:at], default=0) > _MEMORY:
        raise LoadError(_MALFORMED, "the memory section comes too late")
    # Imported memories are numbered before a module's own: where all are, each keeps its number.
    count, entries = _entries(sections.pop(at)[1])
    if _IMPORT in numbers[:at]:
        at = numbers.index(_IMPORT)
        before, start = _number(sections[at][1], 0)
        entries = sections[at][1][start:] + entries
        del sections[at]
    else:
        before, at = 0, numbers.index(_TYPE) + 1 if _TYPE in numbers[:at] else 0
    sections.insert(at, (_IMPORT, _encoded(before + count) + entries))
    return _CORE + b"".join([bytes([number]) + _encoded(len(content)) + content for number, content in sections])


def _sections(wasm: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = len(_CORE)
    while at < len(wasm):
        number, (size, start) = wasm[at], _number(wasm, at + 1)
        at = start + size
        if at > len(wasm):
            raise LoadError(_MALFORMED, f"section {number} is cut off")
        found.append((number, wasm[start:at]))
    return found


def _entries(memories: bytes) -> tuple[int, bytes]:
    """How many memories a section has, and the imports of them."""
    count, at = _number(memories, 0)
    made: list[bytes] = []
    while at < len(memories):
        kind = memories[at]
        if kind > 1:
            raise LoadError(_MALFORMED, "a memory is shared, or has 64-bit addresses")
        end = _number(memories, at + 1)[1]
        end = _number(memories, end)[1] if kind else end
        made.append(_name(MODULE) + _name(str(len(made))) + _AS_MEMORY + memories[at:end])
        at = end
    if len(made) != count:
        raise LoadError(_MALFORMED, f"the memory section has {len(made)} memories in the place of {count}")
    return count, b"".join(made)


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


def _name(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
