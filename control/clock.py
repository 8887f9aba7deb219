"""The one source of time in control: SQL's now() is never used, so that a test can set the time.

A machine's clock may be wrong, for a moment or for long. Every replica compares its clock with the database's, which
all replicas share, and goes by the database's while the two differ by more than `AHEAD`. Times that a wrong clock has
stored further ahead than that are corrected (`control.sync.passes.future_times`).
"""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

AHEAD = timedelta(seconds=10)
"""A time that is further ahead than this was written by a wrong clock."""

log = logging.getLogger("skerry.clock")


class Clock(Protocol):
    """A source of time."""

    def now(self) -> datetime:
        """The time, in UTC."""

    def compare(self, theirs: datetime, before: datetime) -> None:
        """Compare with `theirs`, the time of the database's clock, which was asked for at `before` by this clock."""


class SystemClock:
    """The machine's clock while it is within `AHEAD` of the database's, else the database's.

    Between two comparisons it adds the time that has passed, so a jump of the machine's clock has no effect in between.
    """

    def __init__(self) -> None:
        self._offset = time.time() - _passed()
        self._wrong = False

    def now(self) -> datetime:
        # As `_passed`, written out: it runs several times in each poll.
        return datetime.fromtimestamp(time.clock_gettime(time.CLOCK_BOOTTIME) + self._offset, UTC)

    def compare(self, theirs: datetime, before: datetime) -> None:
        took = self.now() - before
        if took > AHEAD:
            return  # the answer took too long to say anything
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
    """Seconds since the machine's start, with those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
