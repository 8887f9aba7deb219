"""What decides from a core module's code: whether it has the instruction table.grow, and how many local variables.
Pure.

The bytes of table.grow are common in constants and offsets (3 MB of Go have them by chance), so a function in which
they occur is decoded.
"""

import re
from typing import Final

from edge_runtime.guests.abi.instructions import TABLE_GROW, Unknown, notable, number

_BYTES: Final = re.compile(rb"\xfc(?:\x0f|\x8f(?:\x80){0,3}\x00)")
"""table.grow, with its opcode in any length that LEB128 allows."""


def grows_tables(code: bytes, start: int, end: int) -> bool:
    """Return whether the code section's content, `code[start:end]`, has table.grow; True also where it can't be
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
    can declare millions, and each costs the compiler a kilobyte. Where the code can't be decoded, only those before are
    counted: WasmEdge refuses such a module."""
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
