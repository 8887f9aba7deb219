"""Ends a worker whose call has more temporary data on disk than a call may.

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

from edge_runtime.dispatch.outcomes import TEMP
from edge_runtime.dispatch.pool import Pool

log = logging.getLogger("skerry.temp")

PERIOD: Final = 0.05
"""Seconds between two looks, and before the first look at a call: a disk takes 100 MB in that time."""


async def run(pool: Pool, folder: Path, limit: int) -> None:
    """Watch until cancelled. `folder` is where temporary data go, `limit` the bytes of them that a call may have."""
    while True:
        await asyncio.sleep(PERIOD)
        now = time.monotonic()
        for link in list(pool.links):
            if link.jobs and not link.killed and now - link.since > PERIOD:
                size = used(link.child.pid, folder)
                if size > limit:
                    log.error("worker %d has %d MiB of temporary data", link.child.pid, size >> 20)
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
