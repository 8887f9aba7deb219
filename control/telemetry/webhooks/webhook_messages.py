"""Makes messages for webhooks from what transactions recorded as events.

Events of one kind are put together: the first makes a message after `FIRST_WAIT`, and all that happen in the `GATHER`
seconds after it make the next one. So ten thousand nodes that go offline at once are a few messages, each with the
number of nodes and the names of some.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import orjson

from control.clock import Clock
from control.protocol.wire import EVENT_KINDS
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.storage.events import MOST_ITEMS

FIRST_WAIT = timedelta(seconds=1)
"""How long an event waits for others of its kind, such as those of the monitor's next page of nodes."""
GATHER = 30.0
"""Seconds from one message of a kind to the next at least."""
PAGE = 5000
"""Events in a message at most."""
MOST_WAITING = 1000
"""Messages that may wait for one webhook; any more are given up at once."""
TOO_MANY = f"{MOST_WAITING} messages waited for the webhook already"


class Webhook(NamedTuple):
    """A URL that messages are sent to."""

    id: str
    name: str
    url: str
    secret: str
    kinds: list[str]
    """The kinds that it gets; all if there are none."""
    ended: bool
    """Whether its receiver has said that it is gone."""

    def wants(self, kind: str) -> bool:
        return not self.ended and (not self.kinds or kind in self.kinds)


class RecordedEvent(NamedTuple):
    """What happened in one transaction."""

    id: str
    at: datetime
    kind: str
    times: int
    """How many things happened."""


class EventItems(NamedTuple):
    """What an event says of each thing that it names."""

    id: str
    items: list[dict[str, Any]]


class NamedNode(NamedTuple):
    """A node's name and group."""

    id: str
    name: str
    group_name: str


class NumberedRelease(NamedTuple):
    """A release's number and group."""

    id: str
    number: int
    group_name: str


class WaitingCount(NamedTuple):
    """How many messages wait for a webhook."""

    id: str
    messages: int


SQL = queries.load("webhooks")
RECORDED = SQL.rows("recorded", RecordedEvent)
ITEMS = SQL.rows("items", EventItems)
TAKE_EVENTS = SQL.value("take_events", str)
NODE_NAMES = SQL.rows("node_names", NamedNode)
RELEASE_NUMBERS = SQL.rows("release_numbers", NumberedRelease)
WAITING = SQL.rows("waiting", WaitingCount)


class Messages:
    """Makes messages; used by the replica that sends."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._next: dict[str, float] = {}
        """When the next message of each kind may be made, in the clock's `monotonic`."""

    async def make(self, webhooks: Sequence[Webhook], now: datetime) -> None:
        """Make a message of each kind that is due, for the webhooks that want it. Raises: ProblemError."""
        passed = self._clock.monotonic()
        kinds = [kind for kind in EVENT_KINDS if self._next.get(kind, passed) <= passed]
        recorded = await self._db.read(lambda conn: conn.fetch(RECORDED, kinds, PAGE))
        by_kind: dict[str, list[RecordedEvent]] = {}
        for event in recorded:
            by_kind.setdefault(event.kind, []).append(event)
        for kind, found in by_kind.items():
            if found[0].at <= now - FIRST_WAIT:
                await self._make(kind, found, [w for w in webhooks if w.wants(kind)], now)
                self._next[kind] = passed + GATHER

    async def _make(self, kind: str, found: list[RecordedEvent], webhooks: list[Webhook], now: datetime) -> None:
        items = await self._db.read(lambda conn: _items(conn, found)) if webhooks else {}
        id = str(uuid4())

        async def work(conn: Connection) -> None:
            # Another replica that has just lost the lease may have taken some.
            taken = set(await conn.column(TAKE_EVENTS, [event.id for event in found]))
            mine = [event for event in found if event.id in taken]
            if not mine or not webhooks:
                return
            count = sum(event.times for event in mine)
            named = [item for event in mine for item in items.get(event.id, ())]
            body = message(kind, mine[0].at, count, named[:MOST_ITEMS])
            waiting = {row.id: row.messages for row in await conn.fetch(WAITING)}
            for webhook in webhooks:
                await _deliver(conn, webhook.id, id, kind, count, body, now, waiting.get(webhook.id, 0) < MOST_WAITING)

        await self._db.transaction(work)


async def deliver_test(conn: Connection, webhook_id: str, by: str, now: datetime) -> str:
    """Queue a message of the kind webhook.test for a webhook; return its id."""
    id = str(uuid4())
    body = message("webhook.test", now, 1, [{"at": now, "operator": by}])
    await _deliver(conn, webhook_id, id, "webhook.test", 1, body, now, wait=True)
    return id


def message(kind: str, at: datetime, count: int, items: Iterable[Mapping[str, Any]]) -> str:
    """Return the body of a message, as it is signed and sent."""
    body = {"type": kind, "timestamp": at, "data": {"count": count, "items": list(items)}}
    return orjson.dumps(body, option=orjson.OPT_UTC_Z).decode()


async def _deliver(
    conn: Connection, webhook_id: str, id: str, kind: str, count: int, body: str, now: datetime, wait: bool
) -> None:
    how = ("waiting", None, "") if wait else ("given_up", now, TOO_MANY)
    await conn.execute(SQL["deliver"], webhook_id, id, kind, count, body, now, *how)


async def _items(conn: Connection, found: list[RecordedEvent]) -> dict[str, list[dict[str, Any]]]:
    """Return the items of the first events as a message has them, with names in place of ids."""
    first = found[:MOST_ITEMS]
    at = {event.id: event.at for event in first}
    items = {row.id: row.items for row in await conn.fetch(ITEMS, list(at))}
    every = [item for of_event in items.values() for item in of_event]
    nodes = {row.id: row for row in await conn.fetch(NODE_NAMES, _ids(every, "node_id"))}
    releases = {row.id: row for row in await conn.fetch(RELEASE_NUMBERS, _ids(every, "release_id"))}

    def told(item: dict[str, Any], time: datetime) -> dict[str, Any]:
        made: dict[str, Any] = {"at": time}
        node_id, release_id = item.pop("node_id", None), item.pop("release_id", None)
        if node_id in nodes:
            # A removed node's name has its id behind it.
            made |= {"node": nodes[node_id].name.partition("~")[0], "group": nodes[node_id].group_name}
        if release_id is not None:
            release = releases.get(release_id)
            if release is not None:
                made.setdefault("group", release.group_name)
            made["release"] = None if release is None else release.number
        return made | item

    return {id: [told(item, at[id]) for item in of_event] for id, of_event in items.items()}


def _ids(items: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    return sorted({item[name] for item in items if item.get(name) is not None})
