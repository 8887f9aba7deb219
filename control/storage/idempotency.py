"""Answers kept under idempotency keys, in the transaction that made them: asking again does nothing twice."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from control.problems import ProblemError
from control.storage import queries

SQL = queries.load("idempotency")


def digest(method: str, path: str, query: bytes, body: bytes) -> str:
    """What makes two requests the same one."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode(), query, body))).hexdigest()


@dataclass(frozen=True)
class Kept:
    """What was answered under a key."""

    response: Any


async def find(conn: Any, operator: str, key: str, request_digest: str) -> Kept | None:
    """What is kept under a key; raises `ProblemError` idempotency_key_used."""
    row = await conn.fetchrow(SQL["find"], operator, key)
    if row is None:
        return None
    if row["request_digest"] != request_digest:
        raise ProblemError(
            "idempotency_key_used",
            "this key came with another request before; use a new one for each request",
            field="Idempotency-Key",
        )
    return Kept(row["response"])


async def once(
    conn: Any,
    now: datetime,
    operator: str,
    key: str,
    request_digest: str,
    status: int,
    work: Callable[[Any], Awaitable[Any]],
    renew: Callable[[Any, Any], Awaitable[Any]] | None = None,
) -> Any:
    """Run `work(conn)`, or return what it returned under the same key; raises `ProblemError` idempotency_key_used.

    A `token` in an answer isn't kept: `renew(conn, kept)` makes another one for what the first request made.
    """
    if not key:
        return await work(conn)
    kept = await find(conn, operator, key, request_digest)
    if kept is not None:
        return kept.response if renew is None else await renew(conn, kept.response)
    result = msgspec.to_builtins(await work(conn))
    public = {name: value for name, value in result.items() if name != "token"} if isinstance(result, dict) else result
    await conn.execute(SQL["keep"], operator, key, request_digest, status, public, now)
    return result
