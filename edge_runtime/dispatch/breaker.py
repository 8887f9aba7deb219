"""Cuts off a function whose calls end their workers again and again, for a growing while. Pure: times are given to it.

A worker's end costs a hundred calls' work, so few of many may do it. Open: no call goes. When its time is over, one
call tries; if it ends well the breaker is closed again, if it ends its worker the next time is twice as long.
"""

import math
from collections import deque
from typing import Final

RULES: Final = ((5, 0.5), (20, 0.1))
"""So many deaths, and at least this share of the calls since the first of them, open it."""
WINDOW: Final = 60.0
"""Seconds within which those deaths must have been."""
FIRST: Final = 1.0
"""Seconds that it is open at first, twice as long each time that follows."""
LONGEST: Final = 60.0
CALM: Final = 60.0
"""Seconds that it must have been closed, to begin with the first time again."""
TRIAL_WAIT: Final = 1
"""Seconds after which those may ask again who come while one call tries."""


class Breaker:
    """Of one version of a function. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self.closed = True
        self.calls = 0
        """That have ended: counted by whoever ends them, deaths apart."""
        self.opened = 0
        """How often it has been opened."""
        self.until = 0.0
        self.trial: object = None
        """The call that tries; None while none does."""
        self._deaths: deque[tuple[float, int]] = deque(maxlen=RULES[-1][0])
        """When, and after how many calls."""
        self._length = 0.0
        self._closed_at = -math.inf

    @property
    def state(self) -> str:
        return "closed" if self.closed else "half_open" if self.trial is not None else "open"

    def left(self, call: object, now: float) -> int:
        """Whole seconds until it makes sense to ask again; 0: the call may go. The first after the open time tries."""
        if self.closed or self.trial is call:
            return 0
        if now < self.until:
            return math.ceil(self.until - now)
        if self.trial is not None:
            return TRIAL_WAIT
        self.trial = call
        return 0

    def died(self, call: object, now: float) -> bool:
        """A call ended its worker; whether the breaker has been opened by it."""
        self.calls += 1
        if not self.closed:
            # Others ran on when it was opened: they don't count again.
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
        """A call ended, and its worker lives."""
        if self.trial is call and not self.closed:
            self.closed, self.trial, self._closed_at = True, None, now
            self._deaths.clear()

    def untried(self, call: object) -> None:
        """A call ended without having shown anything: another one may try."""
        if self.trial is call:
            self.trial = None

    def _too_many(self, number: int, share: float, now: float) -> bool:
        if len(self._deaths) < number:
            return False
        since, calls = self._deaths[-number]
        return now - since <= WINDOW and number >= share * (self.calls - calls + 1)
