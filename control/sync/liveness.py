"""What the monitor makes of the times at which nodes were heard of: online or offline, overdue or not.

Each function sees to a page of nodes in one transaction, on the condition that they still are as they were read, and
leaves out what other transactions have locked. It returns how many nodes it has seen to, and which of them it changed.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import uuid4

from control.storage import queries

SQL = queries.load("monitor")

Done = tuple[int, list[str]]
Work = Callable[[list[str], Any], Awaitable[Done]]


async def silent(since: datetime, now: datetime, ids: list[str], conn: Any) -> Done:
    """Nodes that weren't seen since `since` are offline. One in the middle of a sync isn't before that has expired."""
    unseen = [row["id"] for row in await conn.fetch(SQL["lock_unseen"], ids, since)]
    nodes = await conn.fetch(SQL["lock_free"], unseen)
    online = [row["id"] for row in nodes if row["state"] == "online" and not row["removed"]]
    settled = [row["id"] for row in nodes if row["state"] != "syncing" or row["removed"]]
    if online:
        await conn.execute(SQL["change_states"], online, "offline", now)
    if settled:
        await conn.execute(SQL["set_offline"], settled, True)
    return len(settled), online


async def heard(since: datetime, now: datetime, ids: list[str], conn: Any) -> Done:
    """Nodes that were seen since `since` are online again."""
    again = [row["id"] for row in await conn.fetch(SQL["lock_seen_again"], ids, since)]
    nodes = await conn.fetch(SQL["lock_free"], again)
    offline = [row["id"] for row in nodes if row["state"] == "offline" and not row["removed"]]
    settled = [row["id"] for row in nodes]
    if offline:
        await conn.execute(SQL["change_states"], offline, "online", now)
    if settled:
        await conn.execute(SQL["set_offline"], settled, False)
    return len(settled), offline


async def overdue(since: datetime, now: datetime, ids: list[str], conn: Any) -> Done:
    """Nodes that weren't confirmed at their target since `since` have a warning."""
    rows = await conn.fetch(SQL["lock_overdue"], ids, since)
    late = [row for row in rows if not row["removed"]]
    if late:
        messages = [f"not confirmed at its target since {row['confirmed_at']:%Y-%m-%d %H:%M:%S} UTC" for row in late]
        await conn.execute(SQL["warn"], [str(uuid4()) for _ in late], [row["id"] for row in late], messages, now)
    if rows:
        await conn.execute(SQL["set_overdue"], [row["id"] for row in rows], True)
    return len(rows), [row["id"] for row in late]


async def confirmed(since: datetime, now: datetime, ids: list[str], conn: Any) -> Done:
    """Nodes that were confirmed since `since` have their warning no longer."""
    again = [row["id"] for row in await conn.fetch(SQL["lock_overdue_no_more"], ids, since)]
    if again:
        await conn.execute(SQL["clear_warnings"], again, now)
        await conn.execute(SQL["set_overdue"], again, False)
    return len(again), again
