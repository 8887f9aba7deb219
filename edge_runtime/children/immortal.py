"""Makes all objects of this process immortal, as Python's own constants are: their references aren't counted any more.

A worker that only reads an object writes its reference count, and so gets a copy of the page that it had shared with
the zygote and all other workers. Python has had immortal objects for that reason since 3.12 (PEP 683), and no function
that makes one. What is done here to an object is what Python does: its count is set to the value that counting leaves
alone. Immortal objects are never freed, so this is for those that live as long as the process (docs/adr/0066).
"""

import ctypes
import gc
import sys
from types import CodeType, FrameType
from typing import Any, Final

_KNOWN: Final = ((3, 12), (3, 13))
"""Versions of CPython whose counts are known to be as below."""
_IMMORTAL: Final = (1 << 32) - 1
"""The count of immortal objects there: where the lower half of it is negative, as 32 bits, nothing is counted."""
_NEGATIVE: Final = 1 << 31

_count: Final = ctypes.c_ssize_t.from_address


def possible() -> bool:
    """Tell whether this Python is known to keep counts as it is said here: each object begins with its own."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _KNOWN:
        return False
    mortal = object()
    return _count(id(None)).value == _IMMORTAL and _count(id(mortal)).value == 1


def make_immortal() -> int:
    """Make the objects immortal that the collector knows, but frames, and those that they refer to; return how many.
    Does nothing where it isn't `possible`."""
    if not possible():
        return 0
    made = 0
    found: list[Any] = gc.get_objects()
    own = id(found)
    while found:
        each = found.pop()
        counted = _count(id(each))
        if counted.value & _NEGATIVE or isinstance(each, FrameType) or id(each) == own:
            continue
        counted.value = _IMMORTAL
        made += 1
        found += gc.get_referents(each)
        if type(each) is CodeType:
            # The collector doesn't know code. Of what code has, only the constants are counted where it runs.
            found.append(each.co_consts)
            found += each.co_consts
    return made
