"""A circuit breaker: it cuts off a function whose calls keep killing their workers, for longer each time. Pure.

A worker's death costs as much as a hundred calls, so only a small share of calls may cause one. While the breaker is
open, no call goes through. When that time is over, one call is tried: if it ends well, the breaker closes; if it kills
its worker, the breaker stays open for twice as long.
"""

import math
from collections import deque
from typing import Final

RULES: Final = ((5, 0.5), (20, 0.1))
"""(deaths, share): this many deaths, if they are at least this share of the calls since the first one, open the
breaker."""
WINDOW: Final = 60.0
"""Seconds within which those deaths must have happened."""
# Not `Final`, whose value is built into what is compiled: tests change it.
FIRST = 1.0
"""Seconds that the breaker stays open the first time; the time doubles with each opening."""
LONGEST: Final = 60.0
"""The longest that the breaker stays open, in seconds."""
CALM: Final = 60.0
"""Seconds after which a closed breaker forgets how long it was last open."""
TRIAL_WAIT: Final = 1
"""Seconds after which clients may retry whose calls arrive while another call is being tried."""


class Breaker:
    """The breaker of one version of a function. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.closed = True
        self.calls = 0
        """Calls that have ended. `died` counts its own; `ServedFunction.settle` counts the others."""
        self.opened = 0
        """How often the breaker has opened."""
        self.until = 0.0
        """When the open time is over."""
        self.trial: object = None
        """The call that is being tried; None if there is none."""
        self._deaths: deque[tuple[float, int]] = deque(maxlen=RULES[-1][0])
        """The last deaths: when each was, and after how many calls."""
        self._length = 0.0
        self._closed_at = -math.inf

    @property
    def state(self) -> str:
        return "closed" if self.closed else "half_open" if self.trial is not None else "open"

    def left(self, call: object, now: float) -> int:
        """Return 0 if the call may go through, else the whole seconds after which it makes sense to retry.

        The first call after the open time becomes the one that is tried.
        """
        if self.closed or self.trial is call:
            return 0
        if now < self.until:
            return math.ceil(self.until - now)
        if self.trial is not None:
            return TRIAL_WAIT
        self.trial = call
        return 0

    def died(self, call: object, now: float) -> bool:
        """Note that a call killed its worker; return whether that has opened the breaker."""
        self.calls += 1
        if not self.closed:
            # Calls that ran on when the breaker was opened don't count again.
            if self.trial is not call:
                return False
        else:
            self._deaths.append((now, self.calls))
            if not any(self._too_many(number, share, now) for number, share in RULES):
                return False
            if now - self._closed_at > CALM:
                self._length = 0.0
        self.closed, self.trial = False, None
        self.opened += 1
        self._length = min(LONGEST, self._length * 2 or FIRST)
        self.until = now + self._length
        return True

    def ended(self, call: object, now: float) -> None:
        """Note that a call ended and its worker survived."""
        if self.trial is call and not self.closed:
            self.closed, self.trial, self._closed_at = True, None, now
            self._deaths.clear()

    def untried(self, call: object) -> None:
        """Note that a call ended without running: if it was the trial call, another one may be tried."""
        if self.trial is call:
            self.trial = None

    def _too_many(self, number: int, share: float, now: float) -> bool:
        if len(self._deaths) < number:
            return False
        since, calls = self._deaths[-number]
        return now - since <= WINDOW and number >= share * (self.calls - calls + 1)
