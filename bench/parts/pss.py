"""The memory of a node, of its front and of all processes below it, each page counted once; and of one process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def node(front: int) -> dict[str, int]:
    """Return the bytes of a node's processes: `total`, `front`, `zygote` and `others` (workers, spares and the rest).

    Each is the sum of proportional shares (PSS). This process runs the same interpreter and has a share of those pages;
    the total counts them in full, as if only the node were running.
    """
    shares = tree(front)
    zygote = next((pid for pid in shares if "edge_runtime.children.zygote" in _command(pid) and pid != front), 0)
    own = _sizes("self")
    shared = own["Pss:"] - own["Private_Clean:"] - own["Private_Dirty:"]
    return {
        "total": sum(shares.values()) + shared,
        "front": shares[front],
        "zygote": shares.get(zygote, 0),
        "others": sum(share for pid, share in shares.items() if pid not in (front, zygote)),
    }


def tree(pid: int) -> dict[int, int]:
    """Return the bytes (PSS) of a process and of each one below it."""
    return {each: share(each) for each in descendants(pid)}


def share(pid: int) -> int:
    """Return the bytes (PSS) of a process; 0 once it has exited."""
    return _sizes(pid)["Pss:"]


def own_memory(pid: int) -> float:
    """Return the process's private MiB; 0 once it has exited."""
    sizes = _sizes(pid)
    return (sizes["Private_Clean:"] + sizes["Private_Dirty:"]) / (1 << 20)


def descendants(pid: int) -> Iterator[int]:
    """Return a process and all its descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))


def _sizes(pid: int | str) -> dict[str, int]:
    """Return a process's bytes by name in smaps_rollup; 0 each once it has exited."""
    sizes = {"Pss:": 0, "Private_Clean:": 0, "Private_Dirty:": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            if name in sizes:
                sizes[name] = int(size) * 1024
    return sizes


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
