"""Cores and CPU time, as Linux tells them."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cores() -> tuple[set[int], set[int]]:
    """One core for the load and one for what is measured; the same where this process may use only one."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, {mine[-1]}


def all_cores() -> set[int]:
    """All that this process may use."""
    return set(os.sched_getaffinity(0))


@contextlib.contextmanager
def pinned(where: set[int]) -> Iterator[None]:
    """Meanwhile this thread, and every process that it starts for all its life, runs on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, where)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def seconds(pids: Iterable[int]) -> float:
    """CPU seconds that these processes have used so far, all their threads; one that has ended counts 0."""
    return sum(_of(pid) for pid in pids)


def tree(pid: int) -> float:
    """CPU seconds of a process, of its children and of those that it has waited for."""
    live = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    fields = _stat(pid)
    waited = (int(fields[13]) + int(fields[14])) * _TICK
    return seconds([pid, *map(int, live)]) + waited


def _of(pid: int) -> float:
    """Of its threads that live exactly, where the kernel counts that; else in hundredths."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        if len(threads) == 1:
            return int((threads[0] / "schedstat").read_text().split()[0]) / 1e9
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK


def _stat(pid: int) -> list[str]:
    """The fields behind the name: utime is 11, stime 12, those of waited children 13 and 14."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def machine() -> dict[str, object]:
    """What a figure was measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else "unknown"
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 2)}
