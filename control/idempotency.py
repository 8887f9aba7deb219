"""Answers kept under idempotency keys, in the transaction that made them: asking again does nothing twice."""

import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import msgspec

from control import queries
from control.problems import ProblemError

SQL = queries.load("idempotency")


def digest(method: str, path: str, query: bytes, body: bytes) -> str:
    """What makes two requests the same one."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode(), query, body))).hexdigest()


async def once(
    conn: Any,
    now: datetime,
    operator: str,
    key: str,
    request_digest: str,
    status: int,
    work: Callable[[Any], Awaitable[Any]],
) -> Any:
    """Run `work(conn)`, or return what it returned under the same key; raises `ProblemError` idempotency_key_used.

    An answer that holds a secret isn't kept: its work finds what it made by itself (see operators.py, nodes.py).
    """
    if not key:
        return await work(conn)
    row = await conn.fetchrow(SQL["find"], operator, key)
    if row is not None:
        if row["request_digest"] != request_digest:
            raise ProblemError(
                "idempotency_key_used",
                "this key came with another request before; use a new one for each request",
                field="Idempotency-Key",
            )
        return row["response"]
    result = msgspec.to_builtins(await work(conn))
    await conn.execute(SQL["keep"], operator, key, request_digest, status, result, now)
    return result
