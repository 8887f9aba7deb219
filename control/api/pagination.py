"""Pages of lists, limited in items and in bytes. The next page begins at the cursor of the previous one.

Rows are read a few at a time, more of them if they turn out to be small, and each item is encoded by itself. Between
two reads, and after some bytes, other tasks get to run.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Protocol, TypeVar
from uuid import UUID

import msgspec
import orjson
from msgspec import Meta, Struct

from control.problems import ProblemError
from control.storage.connection import Connection
from control.storage.queries import Rows

T = TypeVar("T")
R = TypeVar("R")

LATEST = datetime(9999, 12, 31, tzinfo=UTC)
"""Later than all listed times: lists with the newest first begin here."""
BYTES = 256 * 1024
"""The most bytes of a page's items as JSON. A single item may have more."""
TURN = 16 * 1024
"""Bytes that are encoded before other tasks get to run."""
GROWTH = 4
"""By how much the number of rows may grow from one read to the next."""

Limit = Annotated[int, Meta(ge=1, le=1000)]
Cursor = Annotated[str, Meta(max_length=500)]


class Page(Struct, Generic[T]):
    """A page of a list; `next` is the cursor of the next page, or null."""

    items: list[T]
    next: str | None = None


class Paging(Struct, forbid_unknown_fields=True):
    """Which page of a list."""

    cursor: Cursor | None = None
    """`next` of the previous page."""
    limit: Limit = 100
    """The most items. A page of large items has fewer, and a `next`."""


class Named(Protocol):
    """A row with a name."""

    @property
    def name(self) -> str:
        """Return the name, by which the list is ordered."""


Position = tuple[Any, ...]
"""A row's position in a list: the values by which the list is ordered."""
Fetch = Callable[[Position, int], Awaitable[Sequence[R]]]
Describe = Callable[[Sequence[R]], Awaitable[Sequence[object]]]


async def fill(
    fetch: Fetch[R],
    describe: Describe[R],
    position: Callable[[R], Position],
    after: Position,
    limit: int,
    *,
    first: int = 32,
    most: int = 1000,
) -> Page[Any]:
    """Make a page of at most `limit` items and about `BYTES`, of what comes after the position `after`.

    `fetch(after, count)` reads the next `count` rows; `describe` turns each into an item. `first` rows are read at
    first, and `most` at a time, fewer if rows are large.
    """
    items: list[Any] = []
    size, count = 0, min(first, limit)
    while True:
        rows = await fetch(after, count + 1)
        encoded = 0
        for row, item in zip(rows, await describe(rows[:count]), strict=False):
            raw = msgspec.json.encode(item)
            if items and size + len(raw) > BYTES:
                return Page(items, write_cursor(*after))
            items.append(msgspec.Raw(raw))
            after = position(row)
            size += len(raw)
            encoded += len(raw)
            if encoded > TURN:
                encoded = 0
                await asyncio.sleep(0)
        if len(rows) <= count:
            return Page(items)
        if len(items) == limit or size >= BYTES:
            return Page(items, write_cursor(*after))
        fitting = (BYTES - size) * len(items) // size + 1
        count = min(count * GROWTH, most, limit - len(items), fitting)


def each(make: Callable[[R], object]) -> Describe[R]:
    """Make a `describe` that makes each item of its row alone."""

    async def describe(rows: Sequence[R]) -> Sequence[object]:
        return [make(row) for row in rows]

    return describe


async def as_they_are(rows: Sequence[object]) -> Sequence[object]:
    """Return the rows: a `describe` for rows that are the items."""
    return rows


def by_name(query: Rows[Named], paging: Paging) -> Callable[[Connection], Awaitable[Page[Any]]]:
    """Make the work of a list by name whose rows are its items; `query` takes the name before, and how many.

    Raises: ProblemError invalid_parameter, when the cursor doesn't belong to this list.
    """
    begin = read_cursor(paging.cursor, (str,)) or ("",)

    async def work(conn: Connection) -> Page[Any]:
        return await fill(
            lambda after, count: conn.fetch(query, *after, count),
            as_they_are,
            lambda row: (row.name,),
            begin,
            paging.limit,
        )

    return work


def write_cursor(*values: object) -> str:
    """Encode a position as a cursor, opaque to clients."""
    return base64.urlsafe_b64encode(orjson.dumps(values, default=str)).decode().rstrip("=")


def read_cursor(cursor: str | None, types: tuple[type, ...]) -> Position | None:
    """Decode the position of a cursor. Raises: ProblemError invalid_parameter, when it isn't a cursor of this list."""
    if cursor is None:
        return None
    try:
        values = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if not isinstance(values, list) or len(values) != len(types) or any("\x00" in v for v in values if v == str(v)):
            raise ValueError
        return tuple(_cursor_value(value, type) for value, type in zip(values, types, strict=True))
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise ProblemError(
            "invalid_parameter", "it isn't a cursor of this list: send what an answer had as `next`", field="cursor"
        ) from None


def _cursor_value(value: object, type: type) -> object:
    if type is datetime and isinstance(value, str):
        time = datetime.fromisoformat(value)
        if time.tzinfo is None:
            raise ValueError
        # In UTC, as the query needs it. The latest time of another zone may be out of range there: OverflowError.
        return time.astimezone(UTC)
    if type is UUID and isinstance(value, str):
        return UUID(value)
    if type is int and isinstance(value, int) and abs(value) < 2**62:
        return value
    if type is str and isinstance(value, str):
        return value
    raise ValueError
