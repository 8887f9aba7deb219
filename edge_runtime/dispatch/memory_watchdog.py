"""Ends a worker that has more memory of its own than its calls can need.

Pages of files don't count: all workers share those of compiled functions, and the kernel takes them back when it needs
them. Shared anonymous memory, which wouldn't be seen here, is closed to workers (`sandbox.allowlists`).
A guest can't have more than its manifest's `memory_pages`. What can grow beyond is the host's side of a call, an
interpreter that recurses without end, and a worker that was taken over. `fence.DATA_BYTES` bounds what a process can
map in any case.
"""

import asyncio
import contextlib
import logging
import os
from typing import Final

from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import FOREIGN, MEMORY
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.worker_link import WorkerLink

log = logging.getLogger("skerry.memory")

PERIOD: Final = 0.05
"""Seconds between two looks: a worker can take a few hundred MB in that time."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_WASM_PAGE: Final = 65_536


async def run(pool: Pool, besides: int) -> None:
    """Watch until cancelled. `besides`: bytes that a worker may have besides its guest's memory."""
    while True:
        await asyncio.sleep(PERIOD)
        look(pool, besides)


def look(pool: Pool, besides: int) -> None:
    """Kill workers that have more than they may, and those of which the system tells no memory, though they live."""
    for link in list(pool.links):
        limit = allowed(link, besides)
        size = private(link.child.pid)
        if not size and not link.killed and link.child.lives():
            log.error("worker %d: its main thread has ended, and another one goes on: it is killed", link.child.pid)
            # Not `end`: what it has said counts, as of every process that ends, and it may have kept a call's changes.
            link.kill(FOREIGN)
        elif size > limit and not link.killed:
            log.error("worker %d has %d MiB of memory, and may have %d", link.child.pid, size >> 20, limit >> 20)
            link.kill(MEMORY)


def allowed(link: WorkerLink, besides: int) -> int:
    """Return how many bytes a worker may have. All calls that it has count: it may be ahead of its answers."""
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
