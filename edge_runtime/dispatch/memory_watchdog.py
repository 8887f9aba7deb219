"""Looks at how much memory each worker has of its own, and ends one that has more than its calls can need.

Pages of files don't count: all workers share those of compiled functions, and the kernel takes them back when it needs
them. Anonymous memory that is shared, which would escape this, no worker can have (`allowed`).
A guest can't have more than its manifest's `memory_pages`; beyond it grow only the host's side of a call, an
interpreter that recurses without end, and a worker that was taken over. How much a process can map, whatever this
finds, is `fence.DATA_BYTES`.
"""

import asyncio
import contextlib
import logging
import os
from typing import Final

from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import MEMORY
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.worker_link import WorkerLink

log = logging.getLogger("skerry.memory")

PERIOD: Final = 0.05
"""Seconds between two looks: what a worker can take meanwhile is a few hundred MB."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_WASM_PAGE: Final = 65_536


async def run(pool: Pool, besides: int) -> None:
    """Until cancelled; `besides` are the bytes that a worker may have besides its guest's memory."""
    while True:
        await asyncio.sleep(PERIOD)
        for link in list(pool.links):
            limit = allowed(link, besides)
            found = private(link.child.pid)
            if found > limit and not link.killed:
                log.error("worker %d has %d MiB of memory, and may have %d", link.child.pid, found >> 20, limit >> 20)
                link.kill(MEMORY)


def allowed(link: WorkerLink, besides: int) -> int:
    """Bytes. The calls behind the first one count too: the worker may be ahead of its answers."""
    manifests = [job.target.function.manifest for job in link.jobs if isinstance(job, Call)]
    # A plug-in has two memories.
    pages = [manifest.memory_pages * (2 if manifest.abi == "extism" else 1) for manifest in manifests]
    return besides + _WASM_PAGE * max(pages, default=0)


def private(pid: int) -> int:
    """Bytes of resident memory that no file is behind; 0 where there is no such process."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _, resident, shared = os.read(descriptor, 128).split()[:3]
            return (int(resident) - int(shared)) * _PAGE
        finally:
            os.close(descriptor)
    return 0
