"""Makes the report that goes with polls: the node's counts of calls, and its state (docs/adr/0045).

About once a minute, the new counts become a message; for two minutes after a change of release, every 5 s, since a
release that fails everywhere must show soon. A message goes with each poll until one is answered, while counting
continues. So while control doesn't answer, nothing is lost, and only counts are kept.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from control.protocol import wire
from edge_runtime import clock as front_clock
from edge_runtime.telemetry.call_counts import CallCounts
from edge_runtime.telemetry.hour_of_calls import HourOfCalls

log = logging.getLogger("skerry.agent")

PERIOD: Final = 60.0
"""Seconds from one message to the next, varied by a fraction of `SPREAD`."""
SOON: Final = 5.0
"""The same for a while after a change of release."""
EARLY: Final = 1.6
"""Seconds before its time at which a message is made while messages are frequent: another poll for the remaining time
would cost more."""
SOON_FOR: Final = 120.0
"""Seconds after a change of release."""
SPREAD: Final = 0.25
NODE_PERIOD: Final = 55.0
"""The fewest seconds from one message with the node's own numbers to the next."""
AT_ONCE: Final = 50
"""Functions whose numbers are made before other work gets to run in the loop."""
MOST: Final = 2 * wire.MOST_FUNCTIONS
"""The most functions in a message; others are in the next one."""


def _none() -> None:
    """Return the release of a node that serves none."""


class PollReport:
    def __init__(
        self,
        counted: Callable[[], list[CallCounts]] = list,
        release: Callable[[], int | None] = _none,
        measure: Callable[[], Awaitable[wire.NodeNumbers]] | None = None,
        hour: HourOfCalls | None = None,
        *,
        clock: Callable[[], float] = lambda: front_clock.monotonic(),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Report what these functions return; without them, polls report nothing.

        `counted` returns the counts of all functions, `release` the number of the served release (None if there is
        none), `measure` the state of the node itself, with the counts since the start. `hour` is looked at with polls.
        """
        self._counted = counted
        self._release = release
        self._measure = measure
        self._hour = hour
        self._clock = clock
        self._jitter = jitter
        self._sequence = 0
        self._open = b""
        """The message that no answered poll has contained yet; empty if there is none."""
        self._since = clock()
        """When the last message was made."""
        self._due = self._since + self._soon(PERIOD)
        self._served: int | None = None
        """The release that was served at the last poll."""
        self._polled = False
        self._soon_until = float("-inf")
        self._node_at = float("-inf")
        self._node = wire.NodeNumbers()
        """The node's own numbers as last reported."""

    async def next(self) -> bytes:
        """Return what the next poll should contain; empty if nothing is due."""
        if self._hour is not None:
            await self._hour.look()
        now, release = self._clock(), self._release()
        if release != self._served and self._polled:
            self._soon_until = now + SOON_FOR
            self._due = min(self._due, now + self._soon(SOON))
        self._served, self._polled = release, True
        # Control answers a held poll slightly before its time.
        early = EARLY if now < self._soon_until else 0.0
        if not self._open and now >= self._due - early:
            await self._close(now)
        return self._open

    async def hour_before(self, release: int) -> bytes:
        """Return what the report of a sync to release number `release` should contain; empty if nothing is known."""
        return b"" if self._hour is None else await self._hour.before(release)

    def tell_node_soon(self) -> None:
        """Let one of the next polls report the state of the node itself, because that has changed."""
        self._node_at = float("-inf")
        self._due = min(self._due, self._clock() + self._soon(SOON))

    def hold(self, wait: float) -> float:
        """Return how long control may hold the next poll, which would wait for `wait` seconds.

        A poll that ends in time for the next message is cheaper than closing a connection and opening another.
        """
        now = self._clock()
        return min(wait, max(0.1, self._due - now)) if now < self._soon_until else wait

    def answered(self, numbers: bytes) -> None:
        """Note that a poll with these numbers was answered."""
        if numbers and numbers == self._open:
            self._open = b""

    def refused(self, numbers: bytes) -> None:
        """Drop these numbers: control refuses a poll's content with them, and polls must continue."""
        if numbers and numbers == self._open:
            log.warning("control refuses a poll with what this node has counted: the counts of a minute are given up")
            self._open = b""

    def _soon(self, seconds: float) -> float:
        return seconds * (1 - SPREAD + 2 * SPREAD * self._jitter())

    async def _close(self, now: float) -> None:
        """Make a message of the counts since the last one, if there are any."""
        functions: list[wire.FunctionNumbers] = []
        for number, counts in enumerate(self._counted(), 1):
            if len(functions) == MOST:
                break
            taken = counts.take()
            if taken is not None:
                functions.append(taken)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        node = await self._own(now)
        since, self._since = self._since, now
        self._due = now + self._soon(SOON if now < self._soon_until else PERIOD)
        if functions or node is not None:
            self._sequence += 1
            numbers = wire.Numbers(self._sequence, round(now - since, 3), functions, node)
            self._open = msgspec.msgpack.encode(numbers)

    async def _own(self, now: float) -> wire.NodeNumbers | None:
        """Return the node's own numbers, if they are due."""
        if self._measure is None or now - self._node_at < NODE_PERIOD:
            return None
        try:
            found = await self._measure()
        except Exception:
            log.exception("the node's own numbers can't be made")
            return None
        self._node_at, before, self._node = now, self._node, found
        return msgspec.structs.replace(
            found,
            worker_deaths=max(0, found.worker_deaths - before.worker_deaths),
            log_dropped=max(0, found.log_dropped - before.log_dropped),
            failed_syncs=max(0, found.failed_syncs - before.failed_syncs),
        )
