"""What a transaction announces to every replica: the rows that it changed get the next epoch, as its last statement.

Whoever takes the next epoch holds the row of `epochs` until COMMIT, and every other transaction that announces
something waits for it. So nothing comes between the two: no reading, no other writing.
"""

from dataclasses import dataclass, field
from typing import Any

from control.storage import queries

SQL = queries.load("announce")


@dataclass(slots=True)
class Changed:
    """The ids of rows that every replica is to read again; to be filled by one run of a transaction's work."""

    groups: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    credentials: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)

    async def announce(self, conn: Any) -> None:
        """Give the rows the next epoch. Where there are none, nothing is announced.

        Nothing but COMMIT may follow.
        """
        ids = (self.groups, self.nodes, self.credentials, self.operators)
        if any(ids):
            await conn.fetchval(SQL["announce"], *(sorted(rows) for rows in ids))
