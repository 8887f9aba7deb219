"""Looks at how much temporary data each worker's call has on disk, and ends a worker whose call has more than it may.

The kernel bounds each file (`fence.limit_files`), and a statement with many sorts and groups has many. SQLite takes
their names away at once, so they are looked for among the worker's open files.
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
"""Seconds between two looks, and those that a call runs before the first: what a disk takes meanwhile is 100 MB."""


async def run(pool: Pool, folder: Path, limit: int) -> None:
    """Until cancelled; `folder`: where temporary data are, `limit`: the bytes of them that a call may have."""
    while True:
        await asyncio.sleep(PERIOD)
        now = time.monotonic()
        for link in list(pool.links):
            if link.jobs and not link.killed and now - link.since > PERIOD:
                found = used(link.child.pid, folder)
                if found > limit:
                    log.error("worker %d has %d MiB of temporary data", link.child.pid, found >> 20)
                    link.kill(TEMP)


def used(pid: int, folder: Path) -> int:
    """Bytes of the files of a folder that a process has open; 0 where there is no such process."""
    files, within = f"/proc/{pid}/fd", f"{folder}/"
    total = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(files):
            # It may be closed meanwhile.
            with contextlib.suppress(OSError):
                path = f"{files}/{name}"
                if os.readlink(path).startswith(within):
                    total += os.stat(path).st_size
    return total
