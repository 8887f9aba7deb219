"""What a test has left behind of what it was lent, by two looks at all that it may leave: before and after it."""

import asyncio
import os
from collections.abc import Awaitable, Callable

from tests.support.deadlines import scaled
from tests.support.forked_programs import template_pids
from tests.support.process_tree import children

RETURN_LIMIT = 5.0
"""Seconds in which what a test leaves behind goes by itself, on a machine that is as busy as usual."""
LOOK_EVERY = 0.05


async def left_behind(before: set[str], look: Callable[[], Awaitable[set[str]]]) -> set[str]:
    """Return what the test left, as soon as that is nothing or when the limit is over."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (left := _left(before, await look())) and loop.time() < began + scaled(RETURN_LIMIT):
        await asyncio.sleep(LOOK_EVERY)
    return left


def told(left: set[str]) -> str:
    """Return why a test fails that left something."""
    return "the test left behind:\n" + "\n".join(sorted(left))


def processes() -> set[str]:
    """Return the children of this process, without those that programs are forked from."""
    return {f"process: {pid}" for pid in set(children(os.getpid())) - set(template_pids())}


def descriptors() -> set[str]:
    """Return the files and pipes that this process has open. Pools open and close sockets as they like."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # That of the listing.
            continue
        if not target.startswith(("socket:", "anon_inode:", "/proc/")):
            # What an earlier test had open is the same once its file is gone.
            found.add(f"descriptor {number}: {target.removesuffix(' (deleted)')}")
    return found


STAYS = ("row ", "serving ")
"""How what must not go begins."""


def _left(before: set[str], now: set[str]) -> set[str]:
    """What has come, and what has gone that should be there."""
    return now - before | {f"no more {trace}" for trace in before - now if trace.startswith(STAYS)}
