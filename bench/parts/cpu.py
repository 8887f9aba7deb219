"""Cores and CPU time, from Linux."""

import contextlib
import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cores() -> tuple[set[int], set[int]]:
    """Return a core for the load and one for the measured server; the same one if this process may use only one."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, {mine[-1]}


def all_cores() -> set[int]:
    """Return all cores that this process may use."""
    return set(os.sched_getaffinity(0))


@contextlib.contextmanager
def pinned(where: set[int]) -> Iterator[None]:
    """Run this thread, and permanently every process that it starts meanwhile, only on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, where)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def seconds(pids: Iterable[int]) -> float:
    """Return the CPU seconds that all threads of these processes have used; a process that has exited counts 0."""
    return sum(_of(pid) for pid in pids)


def own() -> float:
    """Return the CPU seconds of this process, and of the children that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def tree(pid: int) -> float:
    """Return the CPU seconds of a process, of its children, and of the children that it has waited for."""
    live = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    fields = _stat(pid)
    waited = (int(fields[13]) + int(fields[14])) * _TICK
    return seconds([pid, *map(int, live)]) + waited


def _of(pid: int) -> float:
    """Return a process's CPU seconds: exact if it has one thread, else in ticks of a hundredth."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        if len(threads) == 1:
            return int((threads[0] / "schedstat").read_text().split()[0]) / 1e9
        fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: 11 is utime, 12 stime, 13 and 14 those of waited children."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def machine() -> dict[str, object]:
    """Describe the machine that the figures are measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else "unknown"
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 2)}
