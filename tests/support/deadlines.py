"""How long tests wait for what must come to be: their deadlines, times what the machine is slower than usual now.

A limit that a test is about, or gives a helper by itself, isn't such a deadline: it stays as it is.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

USUAL: Final = 2.5
"""How much slower than alone a process is where five have two cores, as in `just test`: deadlines are for that."""
MOST: Final = 8.0
"""The factor, at most: what hangs is to end."""
WINDOW: Final = 1.0
"""Seconds that the thread has to have run or waited for a core for a factor of its own."""
PERIOD: Final = 0.25
"""Seconds for which a factor is taken as it is."""


def slower(ran: float, waited: float) -> float:
    """Return the factor of a thread that ran, and waited for a core, for so many seconds; from 1 to `MOST`."""
    if waited <= 0:
        return 1.0
    return min(max((ran + waited) / ran / USUAL, 1.0), MOST) if ran > 0 else MOST


class Slowness:
    """By which factor the main thread of this process is slower than usual: up to its first tests, or of late."""

    def __init__(self) -> None:
        self._last = self._look()
        self._start = self._recent = slower(*self._last) if sum(self._last) >= WINDOW else 1.0
        self._until = 0.0

    def factor(self) -> float:
        """Return the greater one of the process's start and of the last window."""
        now = time.monotonic()
        if now >= self._until:
            self._until = now + PERIOD
            ran, waited = (new - old for new, old in zip(self._look(), self._last, strict=True))
            if ran + waited >= WINDOW:
                self._recent = slower(ran, waited)
                self._last = self._look()
        return max(self._start, self._recent)

    def _look(self) -> tuple[float, float]:
        """Seconds for which the thread ran, and for which it was ready to run and had no core; 0 where none counts."""
        try:
            ran, waited, _ = Path("/proc/self/schedstat").read_text().split()
        except OSError:
            return 0.0, 0.0
        return int(ran) / 1e9, int(waited) / 1e9


_slowness = Slowness()


def scaled(seconds: float) -> float:
    """Return how long to wait now for what takes less than `seconds` on a machine that is as busy as usual."""
    return seconds * _slowness.factor()


@asynccontextmanager
async def deadline(seconds: float, exact: float | None = None) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but longer where the machine is busier than usual, or becomes so; `exact` is a limit in its
    place that a test is about. Raises: TimeoutError."""
    if exact is not None:
        async with asyncio.timeout(exact):
            yield
        return
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(None) as limit:

        def look() -> None:
            nonlocal timer
            end = began + scaled(seconds)
            if end > loop.time():
                timer = loop.call_at(end, look)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_at(began + seconds, look)
        try:
            yield
        finally:
            timer.cancel()
