"""The one source of time in control: never SQL's now(), so that a test can set it.

A machine's clock may be wrong, for a moment or for long. Every replica compares its own with the database's, which all
of them share, and goes by that one where the two differ by more than `AHEAD`. Times that were stored meanwhile by a
wrong clock are not believed where they are further ahead than that (`ahead.py`).
"""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

AHEAD = timedelta(seconds=10)
"""A time that is further ahead than this is of a clock that was wrong."""

log = logging.getLogger("skerry.clock")


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The time, with UTC as its zone."""

    def compare(self, theirs: datetime, before: datetime) -> None:
        """Hear that the database's clock said `theirs`, at some time since `before`, which this one said."""


class SystemClock:
    """The machine's clock while it is within `AHEAD` of the database's, else the database's.

    Between two comparisons it goes by what has passed, so a jump of the machine's clock isn't seen in between.
    """

    def __init__(self) -> None:
        self._offset = time.time() - _passed()
        self._wrong = False

    def now(self) -> datetime:
        return datetime.fromtimestamp(_passed() + self._offset, UTC)

    def compare(self, theirs: datetime, before: datetime) -> None:
        took = self.now() - before
        if took > AHEAD:
            return  # it was asked too long ago to say anything
        machine = time.time()
        ahead = machine - theirs.timestamp()
        wrong = not -AHEAD.total_seconds() <= ahead <= (AHEAD + took).total_seconds()
        if wrong and not self._wrong:
            log.warning(
                "this machine's clock is %.0f s %s the database's; going by the database's until they agree: set the "
                "clocks of both right, by NTP",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
            )
        elif self._wrong and not wrong:
            log.info("this machine's clock and the database's agree again")
        self._wrong = wrong
        self._offset = (theirs.timestamp() if wrong else machine) - _passed()


def _passed() -> float:
    """Seconds that have passed since the machine's start, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
