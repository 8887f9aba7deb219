"""Reads a core module's code: which functions it names, whether it changes a table or copies data segments, how many
local variables it has. Pure.

For this the opcodes and the sizes of their immediates are enough. Proposals that WasmEdge's default configuration
leaves out aren't known here: tail calls, threads, relaxed SIMD, several memories. Source: WebAssembly Core
Specification 2.0, chapters 5.4 and 5.5.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

CALL: Final = 0x10
REF_FUNC: Final = 0xD2
_TABLE_SET: Final = 0x26
_MEMORY_INIT: Final = 0xFC08
"""The prefix byte, and the number after it."""
_DATA_DROP: Final = 0xFC09
_TABLE_GROW: Final = 0xFC0F
_BR_TABLE, _SELECT, _PREFIX = 0x0E, 0x1C, 0xFC
SEGMENTS: Final = frozenset({"memory.init", "data.drop"})
"""The instructions of `stateful` that use data segments."""
_STATEFUL: Final = {
    _TABLE_SET: ("table.set", 1),
    _MEMORY_INIT: ("memory.init", 2),
    _DATA_DROP: ("data.drop", 1),
    0xFC0C: ("table.init", 2),
    0xFC0D: ("elem.drop", 1),
    0xFC0E: ("table.copy", 2),
    _TABLE_GROW: ("table.grow", 1),
    0xFC11: ("table.fill", 1),
}
"""The name of each, and how many immediates follow."""

NUMBER: Final = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
"""A LEB128 number, as part of a pattern."""
_ADDRESS: Final = NUMBER + NUMBER
_PLAIN: Final = re.compile(
    rb"(?s:"
    rb"[\x00\x01\x05\x0b\x0f\x1a\x1b\x45-\xc4\xd1]"  # without immediates
    rb"|[\x02-\x04\x0c\x0d\x20-\x25\x3f-\x42\xd0]" + NUMBER +  # blocks, branches, variables, tables, constants
    rb"|[\x28-\x3e]" + _ADDRESS +  # loads and stores
    rb"|\x11" + NUMBER * 2 +  # call_indirect
    rb"|\x43.{4}|\x44.{8}"  # f32.const, f64.const
    rb"|\xfc(?:[\x00-\x07]|[\x0b\x10]" + NUMBER + rb"|\x0a" + NUMBER * 2 + rb")"
    rb"|\xfd(?:[\x00-\x0b\x5c\x5d]" + _ADDRESS + rb"|[\x54-\x5b]" + _ADDRESS + rb"."
    rb"|[\x0c\x0d].{16}|[\x15-\x22].|[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]\x01)"  # SIMD
    rb")*+"
)  # fmt: skip
"""A run of uninteresting instructions. It stops at br_table and select, too, whose number of immediates varies."""

_GROWS: Final = re.compile(rb"\xfc(?:\x0f|\x8f(?:\x80){0,3}\x00)")
"""table.grow, with its opcode in any length that LEB128 allows. The bytes are common in constants and offsets (3 MB of
Go contain them by chance), so a function that contains them is decoded."""
_COPIES: Final = re.compile(rb"\xfc(?:[\x08\x09]|[\x88\x89](?:\x80){0,3}\x00)")
"""Likewise memory.init and data.drop."""


class Unknown(ValueError):
    """An instruction isn't known, or is cut off."""


def notable(data: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield each `CALL` and `REF_FUNC` in `data[at:end]`, and each instruction of `stateful`, with the position of its
    immediates.

    Raises: Unknown, when an instruction can't be decoded.
    """
    while True:
        match = _PLAIN.match(data, at, end)
        at = match.end() if match else at
        if at >= end:
            break
        opcode, at = data[at], at + 1
        immediates = 1
        if opcode in (CALL, REF_FUNC):
            yield opcode, at
        elif opcode == _BR_TABLE:
            labels, at = number(data, at)
            immediates = labels + 1
        elif opcode == _SELECT:
            types, at = number(data, at)
            at, immediates = at + types, 0
        else:
            if opcode == _PREFIX:
                prefixed, at = number(data, at)
                opcode = _PREFIX << 8 | prefixed
            if opcode not in _STATEFUL:
                raise Unknown(f"the instruction {opcode:#x} is unknown or of a proposal that nodes don't run")
            yield opcode, at
            immediates = _STATEFUL[opcode][1]
        for _ in range(immediates):
            at = number(data, at)[1]
    if at > end:
        raise Unknown("an instruction is cut off")


def number(data: bytes, at: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number, and the position after it.

    Raises: Unknown, when the number is cut off or too long.
    """
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise Unknown("a number is cut off")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Unknown("a number is too long")


def grows_tables(code: bytes, start: int, end: int) -> bool:
    """Return whether the code section's content, `code[start:end]`, has table.grow; True also if it can't be
    decoded."""
    return _has(code, start, end, _GROWS, (_TABLE_GROW,))


def copies_segments(code: bytes, start: int, end: int) -> bool:
    """Return whether the code section's content, `code[start:end]`, has memory.init or data.drop; True also if it
    can't be decoded."""
    return _has(code, start, end, _COPIES, (_MEMORY_INIT, _DATA_DROP))


def stateful(code: bytes) -> Iterator[str]:
    """Yield the name of each instruction in a code section's content that changes a table, or uses a passive segment.

    Raises: Unknown, when an instruction can't be decoded.
    """
    count, at = number(code, 0)
    for _ in range(count):
        size, body = number(code, at)
        at = body + size
        if at > len(code):
            raise Unknown("a function is cut off")
        for opcode, _ in notable(code, _instructions(code, body), at):
            if opcode in _STATEFUL:
                yield _STATEFUL[opcode][0]


def _has(code: bytes, start: int, end: int, pattern: re.Pattern[bytes], wanted: Sequence[int]) -> bool:
    """Return whether a code section has an instruction of `wanted`, whose bytes `pattern` finds."""
    try:
        places = [match.start() for match in pattern.finditer(code, start, end)]
        count, at = number(code, start)
        for _ in range(count if places else 0):
            size, body = number(code, at)
            at = body + size
            if places[0] < at:
                if _body_has(code[body:at], wanted):
                    return True
                places = [place for place in places if place >= at]
                if not places:
                    break
    except Unknown:
        return True
    return False


def local_variables(code: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the local variables of the function that has the most, and those of all functions together. A few bytes
    can declare millions, and each costs the compiler a kilobyte. If the code can't be decoded, only those before that
    point are counted: WasmEdge refuses such a module."""
    most = total = 0
    try:
        count, at = number(code, start)
        for _ in range(count):
            size, body = number(code, at)
            at = body + size
            groups, body = number(code, body)
            mine = 0
            # A group of local variables takes at least two bytes.
            for _ in range(min(groups, size)):
                more, body = number(code, body)
                body += 1
                mine += more
            most, total = max(most, mine), total + mine
            if at > end:
                break
    except Unknown:
        pass
    return most, total


def _body_has(body: bytes, wanted: Sequence[int]) -> bool:
    """Return whether a function's body has an instruction of `wanted`.

    Raises: Unknown, when it can't be decoded.
    """
    return any(opcode in wanted for opcode, _ in notable(body, _instructions(body, 0), len(body)))


def _instructions(code: bytes, body: int) -> int:
    """Return where a function's instructions begin, behind its local variables.

    Raises: Unknown, when that is cut off.
    """
    groups, at = number(code, body)
    for _ in range(groups):
        at = number(code, at)[1] + 1
    return at
