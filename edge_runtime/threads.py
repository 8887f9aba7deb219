"""The threads of the front.

All are started when the front starts: later the system may refuse a thread, and the front must continue to work.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

COUNT: Final = 6
"""Threads for files and checksums; work that waits for a network uses other threads."""


def executor(count: int = COUNT) -> ThreadPoolExecutor:
    """Return an executor whose threads are all running.

    Raises: RuntimeError, when the system refuses a thread.
    """
    threads = ThreadPoolExecutor(count, "skerry-files")
    # Each thread waits at the barrier for the others, so that none takes two jobs.
    barrier = threading.Barrier(count)
    try:
        waits = [threads.submit(barrier.wait) for _ in range(count)]
    except RuntimeError:
        barrier.abort()
        threads.shutdown(wait=False)
        raise
    for wait in waits:
        wait.result()
    return threads


async def start() -> None:
    """Start the threads of `asyncio.to_thread`, and those for the event loop's look-ups of host names.

    Raises: RuntimeError, when the system refuses a thread.
    """
    loop = asyncio.get_running_loop()
    loop.set_default_executor(executor())
    # libuv starts its threads at the first look-up, and aborts the process if it can't.
    await loop.getaddrinfo("localhost", 0)
