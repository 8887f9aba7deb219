"""What happened, for webhooks: a row of `events`, in the transaction in which it happens.

One row has all that a transaction changed of one kind, however many nodes that are. Where there is no webhook, no row
is written. `control.telemetry.webhooks.webhook_messages` makes messages of the rows.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from control.protocol.wire import EventKind
from control.storage import queries
from control.storage.connection import Connection

MOST_ITEMS = 50
"""Nodes and so on that an event names; it counts all of them."""
LONGEST_TEXT = 300
"""Characters of a text of others', such as a node's error."""

RECORD = queries.load("events")["record"]


async def record(conn: Connection, at: datetime, kind: EventKind, items: Sequence[Mapping[str, Any]]) -> None:
    """Record that `kind` happened to each of `items`, in the transaction that changes them."""
    if items:
        named = [dict(item) for item in items[:MOST_ITEMS]]
        await conn.execute(RECORD, uuid4(), at, kind, len(items), named)
