"""Logging of an outage: when it begins, once a minute with the number of failures, and when it is over."""

import logging
import time
from collections.abc import Callable

from control.protocol.counts import counted

REMIND_EVERY = 60.0
"""Seconds between two lines about a continuing outage."""
QUIET = 5.0
"""Seconds without a failure after which a success ends the outage; an earlier success doesn't."""


class Outage:
    """One kind of failure, logged in a few lines however often it happens."""

    def __init__(self, log: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Log failures as `what`, a phrase such as "heartbeats can't be recorded"."""
        self._log = log
        self._what = what
        self._clock = clock
        self._began = self._last = self._told = 0.0
        self._untold = 0
        """Failures since the last logged line."""
        self._on = False

    def failed(self, cause: str) -> None:
        """Count a failure, and log it with its `cause` if a line is due."""
        now = self._last = self._clock()
        if not self._on:
            self._on, self._began, self._told, self._untold = True, now, now, 0
            self._log.warning("%s: %s", self._what, cause)
            return
        self._untold += 1
        if now - self._told >= REMIND_EVERY:
            seconds = now - self._told
            more = counted(self._untold, "time")
            self._log.warning("%s: %s more in %.0f s, lately: %s", self._what, more, seconds, cause)
            self._told, self._untold = now, 0

    def worked(self) -> None:
        """Log the end of the outage, if there is one and its last failure is at least `QUIET` ago."""
        if self._on and self._clock() - self._last >= QUIET:
            self._on = False
            seconds = self._last - self._began
            untold = counted(self._untold, "time")
            self._log.info("over: %s (it lasted %.0f s; %s unlogged)", self._what, seconds, untold)
