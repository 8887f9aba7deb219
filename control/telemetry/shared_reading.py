"""Reads something from the database only while somebody looks, once for all viewers."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from control.clock import Clock
from control.storage.connection_quotas import ASKS

REST = 20
"""A reading is kept for this many times as long as it took, so that readings take at most a twentieth of the time."""
LONGEST = 30.0
"""Seconds for which a slow reading is kept, at most: if the database was stuck for a while, its answer must not be
shown for minutes."""

T = TypeVar("T")


class SharedReading(Generic[T]):
    """A value that is read on demand if the last reading is too old; everybody who waits shares one reading."""

    def __init__(self, read: Callable[[], Awaitable[T]], period: float, clock: Clock) -> None:
        """Read at most every `period` seconds, measured between the starts of readings."""
        self._read = read
        self._period = period
        self._clock = clock
        self._reading: asyncio.Task[T] | None = None
        self._old_at = -math.inf
        """When the value must be read again, in the clock's `monotonic`."""
        self.value: T | None = None

    async def get(self) -> T:
        """Return the value. If a reading raises an error, everybody who waits for it gets that."""
        if self.value is not None and self._clock.monotonic() < self._old_at:
            return self.value
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._run())
            # If everybody who waits is cancelled, nobody takes its error.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._reading)

    async def stop(self) -> None:
        """Cancel the running read."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _run(self) -> T:
        ASKS.set("")  # for everybody who waits, not just for the first
        began = self._clock.monotonic()
        value = self.value = await self._read()
        self._old_at = began + max(self._period, min(REST * (self._clock.monotonic() - began), LONGEST))
        return value
