"""Rewrites a module so that it imports its memories instead of defining them. Pure.

The host can then reserve and check a memory before any of the guest's code runs, including its start section, and keep
it for the next instance (docs/adr/0018). Source: WebAssembly Core Specification 2.0, chapter 5.5.
"""

from collections.abc import Iterable
from typing import Final

from edge_runtime.wasmedge.errors import LoadError

MODULE: Final = "skerry: memory"
"""The module name of the imports; their field names are the memories' numbers. No guest can have such an import
already: modules that import a memory are refused at upload."""

CORE: Final = b"\0asm\1\0\0\0"
"""What a core module begins with."""
_TYPE, _IMPORT, _MEMORY = 1, 2, 5
_AS_MEMORY: Final = b"\2"
_MALFORMED: Final = 0x0104
"""WasmEdge's code for a section that is cut off."""


def import_memories(wasm: bytes) -> bytes:
    """Return the module with its memories imported; unchanged if it has none.

    Raises: LoadError, when its sections can't be read.
    """
    if not wasm.startswith(CORE):
        return wasm
    found = sections(wasm)
    numbers = [each for each, _ in found]
    if _MEMORY not in numbers:
        return wasm
    if numbers.count(_MEMORY) > 1 or numbers.count(_IMPORT) > 1:
        raise LoadError(_MALFORMED, "a section is there twice")
    at = numbers.index(_MEMORY)
    if max(numbers[:at], default=0) > _MEMORY:
        raise LoadError(_MALFORMED, "the memory section comes too late")
    # Imported memories are numbered before those that a module defines. Since all of them become imports, each keeps
    # its number.
    count, entries = _entries(found.pop(at)[1])
    if _IMPORT in numbers[:at]:
        at = numbers.index(_IMPORT)
        before, start = number(found[at][1], 0)
        entries = found[at][1][start:] + entries
        del found[at]
    else:
        before, at = 0, numbers.index(_TYPE) + 1 if _TYPE in numbers[:at] else 0
    found.insert(at, (_IMPORT, encoded(before + count) + entries))
    return joined(found)


def sections(wasm: bytes) -> list[tuple[int, bytes]]:
    """Return the sections of a core module, each with its number.

    Raises: LoadError, when one is cut off.
    """
    found = []
    at = len(CORE)
    while at < len(wasm):
        section, (size, start) = wasm[at], number(wasm, at + 1)
        at = start + size
        if at > len(wasm):
            raise LoadError(_MALFORMED, f"section {section} is cut off")
        found.append((section, wasm[start:at]))
    return found


def joined(found: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the module that has these sections."""
    return CORE + b"".join([bytes([section]) + encoded(len(content)) + content for section, content in found])


def _entries(memories: bytes) -> tuple[int, bytes]:
    """Return how many memories a section has, and the import entries for them."""
    count, at = number(memories, 0)
    imports: list[bytes] = []
    while at < len(memories):
        kind = memories[at]
        if kind > 1:
            raise LoadError(_MALFORMED, "a memory is shared, or has 64-bit addresses")
        end = number(memories, at + 1)[1]
        end = number(memories, end)[1] if kind else end
        imports.append(_name(MODULE) + _name(str(len(imports))) + _AS_MEMORY + memories[at:end])
        at = end
    if len(imports) != count:
        raise LoadError(_MALFORMED, f"the memory section has {len(imports)} memories in the place of {count}")
    return count, b"".join(imports)


def number(wasm: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number of up to 32 bits, and the position after it.

    Raises: LoadError, when it is cut off or too long.
    """
    value = 0
    for position, byte in enumerate(wasm[at : at + 5]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise LoadError(_MALFORMED, f"a number is cut off or too long, at byte {at}")


def encoded(value: int) -> bytes:
    """Return an unsigned number as LEB128."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*made, value))


def _name(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()
