"""Which calls of a function are among the slowest of the hour. Pure: it is told what time it is."""

import heapq
from typing import Final

MOST: Final = 16
"""A call is slow if it takes longer than all but so many of the hour."""
HOUR: Final = 3600.0


class Slowest:
    __slots__ = ("_times", "bar", "until")

    def __init__(self) -> None:
        self.bar = 0.0
        """Seconds: no call that took up to that long is slow."""
        self.until = float("-inf")
        """When the hour ends, on the clock of `add`; until it is told of a call after that, `bar` stays."""
        self._times: list[float] = []

    def add(self, seconds: float, now: float) -> bool:
        """Return whether a call that ends now, and took so long, is slow."""
        if now >= self.until:
            self.until = now + HOUR
            self._times.clear()
            # Not from the ground: else the first calls of each hour would be slow whatever they took.
            self.bar /= 2
        if seconds <= self.bar:
            return False
        heapq.heappush(self._times, seconds)
        if len(self._times) > MOST:
            heapq.heappop(self._times)
        if len(self._times) == MOST:
            self.bar = max(self.bar, self._times[0])
        return True
