"""Reads a core module's code: which functions it names, whether it grows a table, how many local variables it has.
Pure.

For this the opcodes and the sizes of their immediates are enough. Proposals that WasmEdge's default configuration
leaves out aren't known here: tail calls, threads, relaxed SIMD, several memories. Source: WebAssembly Core
Specification 2.0, chapters 5.4 and 5.5.
"""

import re
from collections.abc import Iterator
from typing import Final

CALL: Final = 0x10
REF_FUNC: Final = 0xD2
TABLE_GROW: Final = 0xFC0F
"""The prefix byte, and the number after it."""
_BR_TABLE, _SELECT, _PREFIX, _GROW = 0x0E, 0x1C, 0xFC, 0x0F

NUMBER: Final = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
"""A LEB128 number, as part of a pattern."""
_ADDRESS: Final = NUMBER + NUMBER
_PLAIN: Final = re.compile(
    rb"(?s:"
    rb"[\x00\x01\x05\x0b\x0f\x1a\x1b\x45-\xc4\xd1]"  # without immediates
    rb"|[\x02-\x04\x0c\x0d\x20-\x26\x3f-\x42\xd0]" + NUMBER +  # blocks, branches, variables, tables, constants
    rb"|[\x28-\x3e]" + _ADDRESS +  # loads and stores
    rb"|\x11" + NUMBER * 2 +  # call_indirect
    rb"|\x43.{4}|\x44.{8}"  # f32.const, f64.const
    rb"|\xfc(?:[\x00-\x07]|[\x09\x0b\x0d\x10\x11]" + NUMBER + rb"|[\x08\x0a\x0c\x0e]" + NUMBER * 2 + rb")"
    rb"|\xfd(?:[\x00-\x0b\x5c\x5d]" + _ADDRESS + rb"|[\x54-\x5b]" + _ADDRESS + rb"."
    rb"|[\x0c\x0d].{16}|[\x15-\x22].|[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]\x01)"  # SIMD
    rb")*+"
)  # fmt: skip
"""A run of uninteresting instructions. It stops at br_table and select, whose number of immediates varies."""

_BYTES: Final = re.compile(rb"\xfc(?:\x0f|\x8f(?:\x80){0,3}\x00)")
"""table.grow, with its opcode in any length that LEB128 allows. The bytes are common in constants and offsets (3 MB of
Go contain them by chance), so a function that contains them is decoded."""


class Unknown(ValueError):
    """An instruction isn't known, or is cut off."""


def notable(data: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield each `CALL`, `REF_FUNC` and `TABLE_GROW` in `data[at:end]`, with the position of its immediate.

    Raises: Unknown, when an instruction can't be decoded.
    """
    while True:
        match = _PLAIN.match(data, at, end)
        at = match.end() if match else at
        if at >= end:
            break
        opcode, at = data[at], at + 1
        if opcode in (CALL, REF_FUNC):
            yield opcode, at
            at = number(data, at)[1]
        elif opcode == _BR_TABLE:
            labels, at = number(data, at)
            for _ in range(labels + 1):
                at = number(data, at)[1]
        elif opcode == _SELECT:
            types, at = number(data, at)
            at += types
        elif opcode == _PREFIX and data[at : at + 1] == bytes([_GROW]):
            yield TABLE_GROW, at + 1
            at = number(data, at + 1)[1]
        else:
            raise Unknown(f"the instruction {opcode:#x} is unknown or of a proposal that nodes don't run")
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
    try:
        places = [match.start() for match in _BYTES.finditer(code, start, end)]
        count, at = number(code, start)
        for _ in range(count if places else 0):
            size, body = number(code, at)
            at = body + size
            if places[0] < at:
                if _grows(code[body:at]):
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


def _grows(body: bytes) -> bool:
    """Return whether a function's body has table.grow.

    Raises: Unknown, when it can't be decoded.
    """
    groups, at = number(body, 0)
    for _ in range(groups):
        at = number(body, at)[1] + 1
    return any(opcode == TABLE_GROW for opcode, _ in notable(body, at, len(body)))
