"""Events for webhooks: rows of `events`, written in the transaction in which the event happens.

One row has everything of one kind that a transaction changed, however many nodes. Without a webhook, no row is written.
`control.telemetry.webhooks.webhook_messages` turns the rows into messages.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from control.protocol.wire import EventKind
from control.storage import queries
from control.storage.connection import Connection

MOST_ITEMS = 50
"""Maximum nodes or other items that an event names; it counts all of them."""
LONGEST_TEXT = 300
"""Maximum characters of a text from outside, such as a node's error."""

RECORD = queries.load("events")["record"]


async def record(conn: Connection, at: datetime, kind: EventKind, items: Sequence[Mapping[str, Any]]) -> None:
    """Record that `kind` happened to each of `items`, in the transaction that changes them."""
    if items:
        named = [dict(item) for item in items[:MOST_ITEMS]]
        await conn.execute(RECORD, uuid4(), at, kind, len(items), named)
