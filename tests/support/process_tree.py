"""The processes that a node's front has started, as the kernel tells them: those of a front that is killed, too."""

import os
from pathlib import Path


def zygote(front: int) -> int:
    """Return the id of the front's zygote, 0 where there is none."""
    return next((pid for pid in _children(front) if b"edge_runtime.children.zygote" in _words(pid)), 0)


def born(front: int) -> list[int]:
    """The zygote's children that the front waits for: workers, the applier, a compiler."""
    found = zygote(front)
    return [pid for pid in _children(found) if not _in_background(pid)] if found else []


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] if pid else []
    except OSError:
        return []


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _in_background(pid: int) -> bool:
    """It compiles while there is nothing else to do."""
    try:
        return os.sched_getscheduler(pid) == os.SCHED_IDLE
    except ProcessLookupError:
        return True
