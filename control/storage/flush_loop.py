"""Periodic writes of what a replica collects in memory, and of the rest when it stops."""

import logging
from collections.abc import Awaitable, Callable

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError

LAST_FLUSH = 2.0
"""Seconds for the last write when the replica stops."""


async def run(
    log: logging.Logger,
    what: str,
    clock: Clock,
    period: float,
    flush: Callable[[], Awaitable[None]],
    waiting: Callable[[], int],
) -> None:
    """Await `flush` every `period` seconds until cancelled, then once more for `LAST_FLUSH` seconds at most.

    `flush` must keep what it can't write for the next time. `what` is a phrase for the log, such as "heartbeats", and
    `waiting` returns how many of them aren't written.
    """
    outage = Outage(log, f"{what} can't be written yet")

    async def attempt() -> None:
        try:
            await flush()
            outage.worked()
        except ProblemError as problem:
            outage.failed(f"{waiting()} wait; {problem.detail}")
        except Exception:
            # A bug in handling one of them must not stop the others for good.
            log.exception("%s could not be written, %d wait", what, waiting())

    try:
        while True:
            await clock.sleep(period)
            await attempt()
    finally:
        try:
            async with clock.timeout(LAST_FLUSH):
                await attempt()
        except TimeoutError:
            pass
        if left := waiting():
            log.warning("%s were not written before the end: %d", what, left)
