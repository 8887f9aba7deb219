"""How much memory a process and all processes below it have."""

import contextlib
from pathlib import Path

_PROC = Path("/proc")


def total(pid: int) -> int:
    """Return the bytes of memory that a process and all below it have, where what several share counts once (the sum of
    their proportional shares). It takes about a millisecond a process: call it in a thread."""
    found, todo, seen = 0, [pid], set[int]()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        found += _share(one)
        # A process that ends meanwhile has nothing any more.
        with contextlib.suppress(OSError, ValueError):
            for task in (_PROC / str(one) / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def _share(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
