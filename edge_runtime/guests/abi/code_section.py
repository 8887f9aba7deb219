"""What decides from a core module's code: the instruction table.grow, and how many local variables it has. Pure.

The bytes of table.grow are common in constants and offsets (3 MB of Go have them by chance), so a function that has
them is decoded.
"""

import re
from typing import Final

from edge_runtime.guests.abi.instructions import TABLE_GROW, Unknown, notable, number

_BYTES: Final = re.compile(rb"\xfc(?:\x0f|\x8f(?:\x80){0,3}\x00)")
"""table.grow, its opcode in any length."""


def grows_tables(code: bytes, start: int, end: int) -> bool:
    """Whether the code section's content, `code[start:end]`, has table.grow; True too where it can't be decoded."""
    try:
        found = [match.start() for match in _BYTES.finditer(code, start, end)]
        count, at = number(code, start)
        for _ in range(count if found else 0):
            size, body = number(code, at)
            at = body + size
            if found[0] < at:
                if _grows(code[body:at]):
                    return True
                found = [place for place in found if place >= at]
                if not found:
                    break
    except Unknown:
        return True
    return False


def local_variables(code: bytes, start: int, end: int) -> tuple[int, int]:
    """How many local variables the function with the most has, and all of them together: a few bytes declare millions,
    and each costs the compiler a kilobyte. Where it can't be decoded, those before: WasmEdge refuses it."""
    most = total = 0
    try:
        count, at = number(code, start)
        for _ in range(count):
            size, body = number(code, at)
            at = body + size
            groups, body = number(code, body)
            mine = 0
            # A group takes two bytes at least.
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
    """Whether a function's body has it. Error: Unknown."""
    groups, at = number(body, 0)
    for _ in range(groups):
        at = number(body, at)[1] + 1
    return any(opcode == TABLE_GROW for opcode, _ in notable(body, at, len(body)))
