"""Finds the instructions of a core module that use what is neither in its memory nor in a global. Pure.

As in `code_section`, the opcodes and the sizes of their immediates are enough, and the same proposals aren't known.
"""

import re
from collections.abc import Iterator
from typing import Final

from edge_runtime.guests.abi.code_section import NUMBER, Unknown, number

SEGMENTS: Final = frozenset({"memory.init", "data.drop"})
"""The instructions of `stateful` that use data segments."""

_TABLE_SET, _BR_TABLE, _SELECT, _PREFIX = 0x26, 0x0E, 0x1C, 0xFC
_PREFIXED: Final = {
    8: ("memory.init", 2),
    9: ("data.drop", 1),
    12: ("table.init", 2),
    13: ("elem.drop", 1),
    14: ("table.copy", 2),
    15: ("table.grow", 1),
    17: ("table.fill", 1),
}
"""Those of the instructions that have the prefix byte: by their number, the name and how many immediates follow."""
_ADDRESS: Final = NUMBER + NUMBER
_OTHERS: Final = re.compile(
    rb"(?s:"
    rb"[\x00\x01\x05\x0b\x0f\x1a\x1b\x45-\xc4\xd1]"  # without immediates
    rb"|[\x02-\x04\x0c\x0d\x10\x20-\x25\x3f-\x42\xd0\xd2]" + NUMBER +  # blocks, branches, calls, variables, constants
    rb"|[\x28-\x3e]" + _ADDRESS +  # loads and stores
    rb"|\x11" + NUMBER * 2 +  # call_indirect
    rb"|\x43.{4}|\x44.{8}"  # f32.const, f64.const
    rb"|\xfc(?:[\x00-\x07]|[\x0b\x10]" + NUMBER + rb"|\x0a" + NUMBER * 2 + rb")"  # memory.fill and copy, table.size
    rb"|\xfd(?:[\x00-\x0b\x5c\x5d]" + _ADDRESS + rb"|[\x54-\x5b]" + _ADDRESS + rb"."
    rb"|[\x0c\x0d].{16}|[\x15-\x22].|[\x0e-\x14\x23-\x53\x5e-\x7f]|[\x80-\xff]\x01)"  # SIMD
    rb")*+"
)  # fmt: skip
"""A run of other instructions. It stops at br_table and select, whose number of immediates varies."""


def stateful(code: bytes) -> Iterator[str]:
    """Yield the name of each instruction in a code section's content that changes a table, or uses a passive segment.

    Raises: Unknown, when an instruction can't be decoded.
    """
    count, at = number(code, 0)
    for _ in range(count):
        size, at = number(code, at)
        end = at + size
        if end > len(code):
            raise Unknown("a function is cut off")
        groups, at = number(code, at)
        for _ in range(groups):
            at = number(code, at)[1] + 1
        yield from _instructions(code, at, end)
        at = end


def _instructions(code: bytes, at: int, end: int) -> Iterator[str]:
    while True:
        match = _OTHERS.match(code, at, end)
        at = match.end() if match else at
        if at >= end:
            break
        opcode, at = code[at], at + 1
        immediates = 0
        if opcode == _BR_TABLE:
            labels, at = number(code, at)
            immediates = labels + 1
        elif opcode == _SELECT:
            types, at = number(code, at)
            at += types
        elif opcode == _TABLE_SET:
            yield "table.set"
            immediates = 1
        elif opcode == _PREFIX and (known := _PREFIXED.get(number(code, at)[0])):
            name, immediates = known
            yield name
            at = number(code, at)[1]
        else:
            raise Unknown(f"the instruction {opcode:#x} is unknown or of a proposal that nodes don't run")
        for _ in range(immediates):
            at = number(code, at)[1]
    if at > end:
        raise Unknown("an instruction is cut off")
