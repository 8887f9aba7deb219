"""The processes that others have started, as the kernel tells them: also those of a node's front that is killed."""

import os
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the ids of a process's children, whichever of its threads has started them."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir()) if pid else []
        return [int(word) for thread in threads for word in (thread / "children").read_text().split()]
    except OSError:
        return []


def zygote(front: int) -> int:
    """Return the id of the front's zygote, 0 where there is none."""
    return next((pid for pid in children(front) if b"edge_runtime.children.zygote" in _words(pid)), 0)


def born(front: int) -> list[int]:
    """The zygote's children that the front waits for: workers, the applier, a compiler."""
    found = zygote(front)
    return [pid for pid in children(found) if not _in_background(pid)] if found else []


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
