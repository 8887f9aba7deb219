"""Looks at how much memory each worker has, and ends one that has more than its calls can need.

A guest can't have more than its manifest's `memory_pages`; beyond it grow only the host's side of a call, an
interpreter that recurses without end, and a worker that was taken over. How much a process can map, whatever this
finds, is `fence.DATA_BYTES`.
"""

import asyncio
import contextlib
import logging
import os
from typing import Final

from .abi import extism
from .calls import Call
from .link import Link
from .pool import Pool
from .verdict import MEMORY
from .wasmedge import PAGE

log = logging.getLogger("skerry.memory")

PERIOD: Final = 0.05
"""Seconds between two looks: what a worker can take meanwhile is a few hundred MB."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


async def run(pool: Pool, besides: int) -> None:
    """Until cancelled; `besides` are the bytes that a worker may have resident besides its guest's memory."""
    while True:
        await asyncio.sleep(PERIOD)
        for link in list(pool.links):
            limit = allowed(link, besides)
            found = resident(link.child.pid)
            if found > limit and not link.killed:
                log.error("worker %d has %d MiB of memory, and may have %d", link.child.pid, found >> 20, limit >> 20)
                pool.kill(link, MEMORY)


def allowed(link: Link, besides: int) -> int:
    """Bytes. The calls behind the first one count too: the worker may be ahead of its answers."""
    manifests = [job.target.function.manifest for job in link.jobs if isinstance(job, Call)]
    # A plug-in has two memories.
    pages = [manifest.memory_pages * (2 if manifest.abi == extism.ABI else 1) for manifest in manifests]
    return besides + PAGE * max(pages, default=0)


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 where there is none."""
    with contextlib.suppress(OSError, IndexError):
        descriptor = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(descriptor, 128).split()[1]) * _PAGE
        finally:
            os.close(descriptor)
    return 0
