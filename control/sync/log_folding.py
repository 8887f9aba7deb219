"""Which attempts of nodes get a line of their own in the log of syncs, and which are counted in a line there is.

A node that fails at once and tries again would write two hundred lines a second, which are kept for months. Of one
generation a node gets `LINES` in `WINDOW`; each attempt after that takes the newest of them, whose `folded` counts it.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from control.storage import queries

SQL = queries.load("syncs")

LINES = 10
WINDOW = timedelta(hours=1)


async def full(conn: Any, attempts: Sequence[tuple[str, str]], now: datetime) -> dict[str, str]:
    """Of the nodes that have all their lines already, the newest line's id by node; `attempts`: node and generation."""
    if not attempts:
        return {}
    node_ids, generations = ([*column] for column in zip(*attempts, strict=True))
    rows = await conn.fetch(SQL["full"], node_ids, generations, now - WINDOW, LINES)
    return {row["node_id"]: row["newest"] for row in rows}
