"""Make all objects of this process immortal, like Python's own constants: their references are no longer counted.

A worker that only reads an object writes its reference count, and so copies the page that it shared with the zygote and
all other workers. Without this module a worker takes 4.4 MB instead of 3, and a node more memory than `just bench
memory` allows. For that reason Python has had immortal objects since 3.12 (PEP 683), but no function that makes one.
This module does what Python does: it sets an object's count to the value that counting doesn't change. Immortal objects
are never freed, so this is only for objects that live as long as the process (docs/adr/0066).
"""

import ctypes
import gc
import sys
from types import CodeType, FrameType
from typing import Any, Final

_KNOWN: Final = ((3, 12), (3, 13))
"""Versions of CPython whose reference counts are known to work as below."""
_IMMORTAL: Final = (1 << 32) - 1
"""The count of immortal objects there: if its lower half is negative as a 32-bit number, nothing is counted."""
_NEGATIVE: Final = 1 << 31

_count: Final = ctypes.c_ssize_t.from_address


def possible() -> bool:
    """Return whether this Python is known to keep an object's count as described here, at the object's beginning."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _KNOWN:
        return False
    mortal = object()
    return _count(id(None)).value == _IMMORTAL and _count(id(mortal)).value == 1


def make_immortal() -> int:
    """Make the collector's objects, except frames, and what they refer to immortal; return how many there were.

    Do nothing if it isn't `possible`.
    """
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
            # The collector doesn't know code objects. Running code counts only references to its constants.
            found.append(each.co_consts)
            found += each.co_consts
    return made
