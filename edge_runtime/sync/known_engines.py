"""Finds the code of an artifact among the engines that a node has, so that a download needn't bring it. Pure.

All snapshots of one engine have the same code section (docs/adr/0076), which is half of them and more. Where the first
bytes of an artifact end in a code section that has the size of an engine's, and begins as that does, the rest of the
section is taken from the engine. Whether that was right is seen when the whole artifact's sha256 is checked.
"""

from collections.abc import Iterable
from typing import Final

from edge_runtime.code_section import Unknown, number

HEAD: Final = 64 * 1024
"""The first bytes of an artifact that are looked at."""
LEAST: Final = 1024
"""Bytes of the code section that must be among them."""

_MAGIC: Final = b"\0asm\1\0\0\0"
_CODE: Final = 10


def code_place(head: bytes) -> tuple[int, int] | None:
    """Return where the content of a module's code section begins, and where it ends, by the module's first bytes; None
    if they don't say."""
    at = len(_MAGIC)
    if not head.startswith(_MAGIC):
        return None
    try:
        while at < len(head):
            section = head[at]
            size, start = number(head, at + 1)
            if section == _CODE:
                return start, start + size
            at = start + size
    except Unknown:
        pass
    return None


def begun(head: bytes, size: int, engines: Iterable[bytes]) -> bytes | None:
    """Return an artifact's bytes up to the end of its code section, which one of the `engines` has; None if none has
    it. `head` are its first `HEAD` bytes, `size` is how many it has."""
    place = code_place(head)
    if place is None or place[0] > len(head) - LEAST or not len(head) < place[1] <= size:
        return None
    start, end = place
    for engine in engines:
        theirs = code_place(engine)
        if theirs is None or theirs[1] - theirs[0] != end - start:
            continue
        code = engine[theirs[0] : theirs[1]]
        if len(code) == end - start and code.startswith(head[start:end]):
            return head[:start] + code
    return None
