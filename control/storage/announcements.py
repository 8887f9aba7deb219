"""Announcements of a transaction to every replica: as its last statement, the rows that it changed get the next epoch.

The transaction that takes the next epoch locks the row of `epochs` until COMMIT, and every other transaction that
announces something waits for it. So no other statement may come between taking the epoch and COMMIT.
"""

from dataclasses import dataclass, field

from control.storage import queries
from control.storage.connection import Connection

ANNOUNCE = queries.load("announce").value("announce", int)


@dataclass(slots=True)
class Changed:
    """The ids of rows that every replica must read again; filled by one run of a transaction's work."""

    groups: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    credentials: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    watches: bool = False
    """Whether a watch began or ended: replicas read all of them with every announcement."""

    async def announce(self, conn: Connection) -> None:
        """Give the rows the next epoch; without a change, do nothing. Only COMMIT may follow."""
        ids = (self.groups, self.nodes, self.credentials, self.operators)
        if any(ids) or self.watches:
            await conn.fetchval(ANNOUNCE, *(sorted(rows) for rows in ids))
