"""What demos share: what they say, how one fails, and how it ends."""

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

LIMIT: Final = 600.0
"""Seconds after which a demo has failed."""


class Wrong(Exception):
    """The demo didn't go as it must; the message says how it went."""


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def must(good: object, text: str) -> None:
    """Raise Wrong with this text, unless `good`."""
    if not good:
        raise Wrong(text)


def run(demo: Callable[[], Awaitable[None]], good: str) -> int:
    """Run a demo, which ends in order also at a signal; return its exit status. `good` is what it says if it is."""
    try:
        return asyncio.run(_run(demo, good))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("everything has ended")
        return 130


async def _run(demo: Callable[[], Awaitable[None]], good: str) -> int:
    running = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if running is not None:
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    began = time.monotonic()
    try:
        async with asyncio.timeout(LIMIT):
            await demo()
    except (AssertionError, TimeoutError, ExceptionGroup, Wrong) as error:
        errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        for each in errors:
            say(f"failed: {each or type(each).__name__}")
        return 1
    say(f"\n{good}, in {time.monotonic() - began:.0f} s; everything has ended")
    return 0
