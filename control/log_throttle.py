"""A trouble that goes on is logged when it begins, once a minute with its count, and when it is over."""

import logging
import time
from collections.abc import Callable

REMIND_EVERY = 60.0
"""Seconds between two lines about a trouble that goes on."""
QUIET = 5.0
"""Seconds without a failure after which a success ends the trouble: single successes in between end nothing."""


class Outage:
    """One kind of trouble, of which any number of failures in a row make a few lines of log."""

    def __init__(self, log: logging.Logger, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`what` says in a phrase what fails: "heartbeats can't be recorded"."""
        self._log = log
        self._what = what
        self._clock = clock
        self._began = self._last = self._told = 0.0
        self._untold = 0
        """Failures since the last line."""
        self._on = False

    def failed(self, cause: str) -> None:
        """Count a failure, whose `cause` is logged if it is time for a line."""
        now = self._last = self._clock()
        if not self._on:
            self._on, self._began, self._told, self._untold = True, now, now, 0
            self._log.warning("%s: %s", self._what, cause)
            return
        self._untold += 1
        if now - self._told >= REMIND_EVERY:
            seconds = now - self._told
            self._log.warning("%s: %d times more in %.0f s, lately: %s", self._what, self._untold, seconds, cause)
            self._told, self._untold = now, 0

    def worked(self) -> None:
        """Say that it is over, if a trouble was going on and its last failure is `QUIET` ago."""
        if self._on and self._clock() - self._last >= QUIET:
            self._on = False
            seconds = self._last - self._began
            self._log.info("over: %s (it lasted %.0f s; %d times unlogged)", self._what, seconds, self._untold)
