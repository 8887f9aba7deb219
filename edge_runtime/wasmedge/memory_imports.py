"""Rewrites a module so that it imports its memories instead of defining them. Pure.

The host can then reserve and check a memory before any of the guest's code runs, including its start section, and keep
it for the next instance (docs/adr/0018). Source: WebAssembly Core Specification 2.0, chapter 5.5.
"""

from typing import Final

from edge_runtime.wasmedge.errors import LoadError

MODULE: Final = "skerry: memory"
"""The module name of the imports; their field names are the memories' numbers. No guest can have such an import
already: modules that import a memory are refused at upload."""

_CORE: Final = b"\0asm\1\0\0\0"
_TYPE, _IMPORT, _MEMORY = 1, 2, 5
_AS_MEMORY: Final = b"\2"
_MALFORMED: Final = 0x0104
"""WasmEdge's code for a section that is cut off."""


def import_memories(wasm: bytes) -> bytes:
    """Return the module with its memories imported; unchanged if it has none.

    Raises: LoadError, when its sections can't be read.
    """
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
    # Imported memories are numbered before those that a module defines. Since all of them become imports, each keeps
    # its number.
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
    sections = []
    at = len(_CORE)
    while at < len(wasm):
        number, (size, start) = wasm[at], _number(wasm, at + 1)
        at = start + size
        if at > len(wasm):
            raise LoadError(_MALFORMED, f"section {number} is cut off")
        sections.append((number, wasm[start:at]))
    return sections


def _entries(memories: bytes) -> tuple[int, bytes]:
    """Return how many memories a section has, and the import entries for them."""
    count, at = _number(memories, 0)
    imports: list[bytes] = []
    while at < len(memories):
        kind = memories[at]
        if kind > 1:
            raise LoadError(_MALFORMED, "a memory is shared, or has 64-bit addresses")
        end = _number(memories, at + 1)[1]
        end = _number(memories, end)[1] if kind else end
        imports.append(_name(MODULE) + _name(str(len(imports))) + _AS_MEMORY + memories[at:end])
        at = end
    if len(imports) != count:
        raise LoadError(_MALFORMED, f"the memory section has {len(imports)} memories in the place of {count}")
    return count, b"".join(imports)


def _number(wasm: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number of up to 32 bits, and the position after it."""
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
