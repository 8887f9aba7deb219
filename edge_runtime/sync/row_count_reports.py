"""Reports roughly how many rows the node's tables have to control, which shows them with releases that can lose rows.

This isn't part of the inventory: the digest of what a node runs doesn't change with its rows, and no poll waits for it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from msgspec import field

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.ipc import frames
from edge_runtime.sync import identity
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer

PERIOD: Final = 3600.0
"""Seconds between two counts."""
SOON: Final = 300.0
"""Seconds within which the rows are counted after the start and after a change of the schema: at a random time, so that
the nodes of a release don't report all at once."""
LOOK: Final = 10.0
"""Seconds between two checks whether the schema has changed."""

log = logging.getLogger("skerry.agent")


class RowCountsOfNode(wire.Message):
    """``PUT /v1/nodes/self/row-counts``."""

    counts: dict[str, int]
    estimates: dict[str, int] = field(default_factory=dict)


class RowCountReports:
    """Counts periodically, and reports noticeable changes."""

    def __init__(
        self,
        state: Path,
        count: Callable[[], Awaitable[frames.Counted | None]],
        schema: Callable[[], int],
        *,
        soon: float = SOON,
    ) -> None:
        """Report the rows of the node; `schema` returns its schema version."""
        self._state = state
        self._count = count
        self._schema = schema
        self._soon = soon
        self._told: dict[str, int] = {}
        self._node_id = ""
        """Whose rows were reported: the machine may have joined again as another node."""

    async def run(self) -> None:
        """Count and report until cancelled."""
        version, due = -1, clock.monotonic()
        while True:
            if self._schema() != version:
                version = self._schema()
                due = clock.monotonic() + random.random() * self._soon  # noqa: S311
            elif clock.monotonic() >= due:
                due = clock.monotonic() + PERIOD * (0.75 + random.random() / 2)  # noqa: S311
                await self._look()
            await clock.sleep(min(LOOK, self._soon))

    async def _look(self) -> None:
        found = await self._count()
        if found is None:
            return
        counted = {**found.counts, **found.estimates}
        try:
            who = await asyncio.to_thread(identity.read, self._state)
            if self._node_id == who.node_id and not differ(self._told, counted):
                return
            ca = await asyncio.to_thread(identity.ca_path, self._state)
            async with ControlClient(who.control_url, ca, who.next_credential or who.credential) as client:
                await client.tell_rows(RowCountsOfNode(found.counts, found.estimates))
        except (NoAnswer, ControlRefused, identity.NotJoined, ValueError, OSError) as error:
            # The next time is soon enough; an earlier version of control doesn't take it.
            log.debug("control wasn't told the numbers of rows: %s", error)
            return
        self._told, self._node_id = counted, who.node_id


def differ(told: dict[str, int], counted: dict[str, int]) -> bool:
    """Return whether the numbers are worth reporting: a table was added or removed, or has twice or half the rows."""
    if told.keys() != counted.keys():
        return True
    return any(2 * min(told[table], rows) <= max(told[table], rows) > 0 for table, rows in counted.items())
