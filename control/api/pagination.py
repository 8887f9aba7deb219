"""Pages of lists, bounded in bytes: a page ends where it has its items or its bytes, and its cursor goes on.

Rows are read a few at a time, more of them as they turn out small, and each item is encoded by itself; between two
readings, and after some bytes, others have their turn.
"""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import orjson

from control.api import responses
from control.problems import ProblemError

BYTES = 256 * 1024
"""Of a page's items as JSON, but for one item that has more by itself."""
TURN = 16 * 1024
"""Bytes that are encoded before others have their turn."""
GROWTH = 4

Fetch = Callable[[tuple[Any, ...], int], Awaitable[Sequence[Any]]]
Describe = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]


async def fill(
    fetch: Fetch,
    describe: Describe,
    after: tuple[Any, ...],
    limit: int,
    columns: Sequence[str],
    *,
    first: int = 32,
    most: int = 1000,
) -> responses.Page[Any]:
    """A page of at most `limit` items and about `BYTES`, from behind `after`.

    `fetch(after, count)` reads the next `count` rows behind the values of `columns` that a row had; `describe` makes an
    item of each. `first` and `most` are how many rows are read at first and at a time, fewer where rows are large.
    """
    items: list[Any] = []
    size, count = 0, min(first, limit)
    while True:
        rows = await fetch(after, count + 1)
        encoded = 0
        for row, item in zip(rows, await describe(rows[:count]), strict=False):
            raw = msgspec.json.encode(item)
            if items and size + len(raw) > BYTES:
                return responses.Page(items, write_cursor(*after))
            items.append(msgspec.Raw(raw))
            after = tuple(row[column] for column in columns)
            size += len(raw)
            encoded += len(raw)
            if encoded > TURN:
                encoded = 0
                await asyncio.sleep(0)
        if len(rows) <= count:
            return responses.Page(items)
        if len(items) == limit or size >= BYTES:
            return responses.Page(items, write_cursor(*after))
        fitting = (BYTES - size) * len(items) // size + 1
        count = min(count * GROWTH, most, limit - len(items), fitting)


def each(make: Callable[[Any], Any]) -> Describe:
    """`describe` where each row says all of its item."""

    async def describe(rows: Sequence[Any]) -> Sequence[Any]:
        return [make(row) for row in rows]

    return describe


def write_cursor(*values: object) -> str:
    """Where a page ended: opaque to clients."""
    return base64.urlsafe_b64encode(orjson.dumps(values, default=str)).decode().rstrip("=")


def read_cursor(cursor: str | None, types: tuple[type, ...]) -> tuple[Any, ...] | None:
    """The values of a cursor; raises `ProblemError` for what isn't one of this list's."""
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
        # The end of time in another zone is past it in UTC, as which it is asked for.
        return time.astimezone(UTC)
    if type is UUID and isinstance(value, str):
        return UUID(value)
    if type is int and isinstance(value, int) and abs(value) < 2**62:
        return value
    if type is str and isinstance(value, str):
        return value
    raise ValueError
