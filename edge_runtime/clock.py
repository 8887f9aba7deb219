"""The front's clock, and its timers: for patience, holds, pauses, backoffs, leases and how often something is looked at
or told (docs/adr/0070).

The front asks it by its name each time, as in `clock.sleep(1.0)`: a test puts a clock of its own in the place of these
functions, and moves it. So this module isn't compiled. What calls take and may take is real, as workers' times are:
that is asked of `time`, and so is whatever other processes and threads wait for.
"""

import asyncio
from asyncio import sleep, timeout
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol

__all__ = ("SetTimer", "call_later", "monotonic", "now", "sleep", "timeout")


class SetTimer(Protocol):
    """What `call_later` returns."""

    def cancel(self) -> None:
        """Don't call what was to be called; does nothing if it was called."""


def now() -> datetime:
    """Return the time of day, in UTC."""
    return datetime.now(UTC)


def call_later(delay: float, callback: Callable[..., object], *args: Any) -> SetTimer:
    """Have the running loop call `callback` in `delay` seconds."""
    return asyncio.get_running_loop().call_later(delay, callback, *args)
