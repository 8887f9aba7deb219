"""The threads of the front, all started at its start: later the system may refuse one, and the front must go on."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

COUNT: Final = 6
"""Threads for files and checksums. What waits for a network has its own."""


def executor(count: int = COUNT) -> ThreadPoolExecutor:
    """An executor with all of its threads. Error: RuntimeError, where the system refuses one."""
    made = ThreadPoolExecutor(count, "skerry-files")
    # Each thread waits for all others, so none does the work of two.
    together = threading.Barrier(count)
    try:
        waits = [made.submit(together.wait) for _ in range(count)]
    except RuntimeError:
        together.abort()
        made.shutdown(wait=False)
        raise
    for wait in waits:
        wait.result()
    return made


async def start() -> None:
    """Start those of `asyncio.to_thread` and of the loop's lookups of names. Error: RuntimeError."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(executor())
    # libuv starts its own at the first lookup, and ends the process where it can't.
    await loop.getaddrinfo("localhost", 0)
