"""The front's clock and timers: for patience, holds, pauses, backoffs, leases and periodic work (docs/adr/0070).

The front always calls these functions through the module, as in `clock.sleep(1.0)`, so that a test can replace them
with its own clock. So this module isn't compiled. The times and limits of calls are real, like workers' times: they use
`time`, and so does everything that other processes and threads wait for.
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
        """Cancel the call; do nothing if it was made."""


def now() -> datetime:
    """Return the time of day, in UTC."""
    return datetime.now(UTC)


def call_later(delay: float, callback: Callable[..., object], *args: Any) -> SetTimer:
    """Let the running loop call `callback` after `delay` seconds."""
    return asyncio.get_running_loop().call_later(delay, callback, *args)
