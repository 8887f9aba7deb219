"""Kills a worker that has more private memory, or more temporary data on disk, than its calls may have.

Pages of files don't count as memory: all workers share those of compiled functions, and the kernel takes them back when
it needs them. Shared anonymous memory, which wouldn't be seen here, isn't available to workers (`sandbox.allowlists`).
A guest can't have more than its manifest's `memory_pages`. What can grow beyond that is the host's side of a call, an
interpreter in endless recursion, and a worker that was taken over. In any case, `fence.DATA_BYTES` limits what a
process can map.

The kernel bounds each file (`fence.limit_files`), but a statement with many sorts and groups has many files. SQLite
unlinks them as soon as they are open, so they are found among the worker's open files.
"""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Final

from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import FOREIGN, MEMORY, TEMP
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.worker_link import WorkerLink

memory_log = logging.getLogger("skerry.memory")
files_log = logging.getLogger("skerry.temp")

PERIOD: Final = 0.05
"""Seconds between two checks, and before the first check of a call's files: in that time a worker can take a few
hundred MB of memory and write 100 MB to disk."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_WASM_PAGE: Final = 65_536


async def run(pool: Pool, memory_besides: int, folder: Path, temp_limit: int) -> None:
    """Watch until cancelled.

    `memory_besides`: bytes of memory that a worker may have in addition to its guest's; `folder`: where temporary data
    goes; `temp_limit`: bytes of it that a call may have.
    """
    while True:
        await asyncio.sleep(PERIOD)
        look_at_memory(pool, memory_besides)
        look_at_files(pool, folder, temp_limit)


def look_at_memory(pool: Pool, besides: int) -> None:
    """Kill workers that exceed their memory, and those still alive although their main thread has exited."""
    for link in list(pool.links):
        limit = allowed(link, besides)
        size = private(link.child.pid)
        if not size and not link.killed and link.child.lives():
            memory_log.error(
                "worker %d: its main thread has ended, and another one goes on: it is killed", link.child.pid
            )
            # Not `end`: as with every process that exits, what it said counts, and it may have committed a call's
            # changes.
            link.kill(FOREIGN)
        elif size > limit and not link.killed:
            text = "worker %d has %d MiB of memory, and may have %d"
            memory_log.error(text, link.child.pid, size >> 20, limit >> 20)
            link.kill(MEMORY)


def allowed(link: WorkerLink, besides: int) -> int:
    """Return how many bytes a worker may have. All of its calls count: it may be ahead of its answers."""
    manifests = [job.served.function.manifest for job in link.jobs if isinstance(job, Call)]
    # A plug-in has two memories.
    pages = [manifest.memory_pages * (2 if manifest.abi == "extism" else 1) for manifest in manifests]
    return besides + _WASM_PAGE * max(pages, default=0)


def private(pid: int) -> int:
    """Return the bytes of a process's resident memory that no file is behind; 0 if there is no such process."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _, resident, shared = os.read(descriptor, 128).split()[:3]
            return (int(resident) - int(shared)) * _PAGE
        finally:
            os.close(descriptor)
    return 0


def look_at_files(pool: Pool, folder: Path, limit: int) -> None:
    """Kill workers whose call has more temporary data in `folder` than `limit` bytes."""
    now = time.monotonic()
    for link in list(pool.links):
        if link.jobs and not link.killed and now - link.since > PERIOD:
            size = used(link.child.pid, folder)
            if size > limit:
                files_log.error("worker %d has %d MiB of temporary data", link.child.pid, size >> 20)
                link.kill(TEMP)


def used(pid: int, folder: Path) -> int:
    """Return the bytes of the files in `folder` that a process has open; 0 if there is no such process."""
    files, within = f"/proc/{pid}/fd", f"{folder}/"
    total = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(files):
            # The file may be closed meanwhile.
            with contextlib.suppress(OSError):
                path = f"{files}/{name}"
                if os.readlink(path).startswith(within):
                    total += os.stat(path).st_size
    return total
