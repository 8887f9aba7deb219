"""What decides from a core module's code: the instruction table.grow, and how many local variables it has. Pure.

The bytes of table.grow are common in constants and offsets (3 MB of Go have them by chance), so a function that has
them is decoded: opcodes and the sizes of what follows them, which is all that it takes to go from one instruction to
the next.
Source: WebAssembly Core Specification 2.0, chapter 5.4, and the proposals for tail calls, threads and relaxed SIMD.
"""

import re
from typing import Final

_BYTES: Final = re.compile(rb"\xfc(?:\x0f|\x8f(?:\x80){0,3}\x00)")
"""table.grow, its opcode in any length."""

# How many numbers (LEB128) follow an opcode.
_NUMBERS: Final = {
    **dict.fromkeys([0x00, 0x01, 0x05, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1, *range(0x45, 0xC5)], 0),
    **dict.fromkeys([0x02, 0x03, 0x04, 0x0C, 0x0D, 0x10, 0x12, *range(0x20, 0x27), 0x3F, 0x40, 0x41, 0x42], 1),
    **dict.fromkeys([0xD0, 0xD2], 1),
    **dict.fromkeys([0x11, 0x13], 2),
}
_MEMORY: Final = range(0x28, 0x3F)
_BULK: Final = {**dict.fromkeys(range(8), 0), 8: 2, 9: 1, 10: 2, 11: 1, 12: 2, 13: 1, 14: 2, 16: 1, 17: 1}
"""Behind 0xFC."""
_GROW: Final = 15


class _Unknown(Exception):
    """An instruction that isn't known here."""


def grows_tables(code: bytes, start: int, end: int) -> bool:
    """Whether the code section's content, `code[start:end]`, has table.grow; True too where it can't be decoded."""
    try:
        found = [match.start() for match in _BYTES.finditer(code, start, end)]
        count, at = _number(code, start)
        for _ in range(count if found else 0):
            size, body = _number(code, at)
            at = body + size
            if found[0] < at:
                if _grows(code[body:at]):
                    return True
                found = [place for place in found if place >= at]
                if not found:
                    break
    except (_Unknown, IndexError):
        return True
    return False


def local_variables(code: bytes, start: int, end: int) -> tuple[int, int]:
    """How many local variables the function with the most has, and all of them together: a few bytes declare millions,
    and each costs the compiler a kilobyte. Where it can't be decoded, those before: WasmEdge refuses it."""
    most = total = 0
    try:
        count, at = _number(code, start)
        for _ in range(count):
            size, body = _number(code, at)
            at = body + size
            groups, body = _number(code, body)
            mine = 0
            # A group takes two bytes at least.
            for _ in range(min(groups, size)):
                more, body = _number(code, body)
                body += 1
                mine += more
            most, total = max(most, mine), total + mine
            if at > end:
                break
    except (_Unknown, IndexError):
        pass
    return most, total


def _grows(body: bytes) -> bool:
    """Whether a function's body has it. Errors: _Unknown, IndexError."""
    groups, at = _number(body, 0)
    for _ in range(groups):
        at = _number(body, at)[1] + 1
    while at < len(body):
        opcode = body[at]
        at += 1
        numbers = _NUMBERS.get(opcode)
        if numbers is not None:
            for _ in range(numbers):
                at = _skip(body, at)
        elif opcode in _MEMORY:
            at = _address(body, at)
        elif opcode == 0x43:
            at += 4
        elif opcode == 0x44:
            at += 8
        elif opcode == 0x0E:
            labels, at = _number(body, at)
            for _ in range(labels + 1):
                at = _skip(body, at)
        elif opcode == 0x1C:
            types, at = _number(body, at)
            at += types
        elif opcode == 0xFC:
            instruction, at = _number(body, at)
            if instruction == _GROW:
                return True
            if instruction not in _BULK:
                raise _Unknown
            for _ in range(_BULK[instruction]):
                at = _skip(body, at)
        elif opcode == 0xFD:
            at = _vector(body, at)
        elif opcode == 0xFE:
            instruction, at = _number(body, at)
            at = at + 1 if instruction == 3 else _address(body, at)
        else:
            raise _Unknown
    return False


def _vector(body: bytes, at: int) -> int:
    """The end of a SIMD instruction, whose number is at `at`."""
    instruction, at = _number(body, at)
    if instruction <= 11 or instruction in (92, 93):
        return _address(body, at)
    if instruction in (12, 13):
        return at + 16
    if 84 <= instruction <= 91:
        return _address(body, at) + 1
    return at + 1 if 21 <= instruction <= 34 else at


def _address(body: bytes, at: int) -> int:
    """The end of an alignment, an index of a memory where the alignment says so, and an offset."""
    alignment, at = _number(body, at)
    if alignment & 0x40:
        at = _skip(body, at)
    return _skip(body, at)


def _skip(body: bytes, at: int) -> int:
    while body[at] >= 0x80:
        at += 1
    return at + 1


def _number(body: bytes, at: int) -> tuple[int, int]:
    """An unsigned number, and its end."""
    value = shift = 0
    while (byte := body[at]) >= 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise _Unknown
    return value | byte << shift, at + 1
