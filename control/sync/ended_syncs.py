"""Open syncs that a transaction ends, written together: by a poll, by a report, or by the monitor."""

from dataclasses import dataclass, field
from datetime import datetime

from control.storage import queries
from control.storage.connection import Connection
from control.sync import node_state
from control.sync.node_state import NodeRow, RunningSync

SQL = queries.load("syncs")

EXPIRED = "sync_expired"
"""Code of a node's error when the lease of its sync has passed."""


@dataclass(slots=True)
class EndedSyncs:
    """The syncs and how each ended, column by column."""

    ids: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    """Ids of releases that nodes have come to run."""

    def add(self, sync_id: str, status: str, code: str = "", message: str = "") -> None:
        """End a sync with `status`; a failure with its error."""
        self.ids.append(sync_id)
        self.statuses.append(status)
        self.codes.append(node_state.clean(code))
        self.messages.append(node_state.clean(message))

    def expire(self, sync: RunningSync, node: NodeRow, now: datetime) -> None:
        """End a sync whose lease has passed: it is a failure of its node."""
        late = (now - sync.lease_until).total_seconds()
        after = f" after the step {sync.step!r}" if sync.step else ""
        message = f"nothing was heard of the sync{after}; its lease ended {late:.0f} s ago"
        self.add(sync.id, "expired", EXPIRED, message)
        node.fail(EXPIRED, message, now, sync.generation)
        node.enter("online", now)

    async def save(self, conn: Connection, now: datetime) -> None:
        """Write the ends."""
        if self.ids:
            await conn.execute(SQL["end_syncs"], self.ids, self.statuses, self.codes, self.messages, now)
        if self.reached:
            await conn.execute(SQL["mark_reached"], sorted(self.reached), now)
