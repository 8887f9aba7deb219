"""Answers stored under idempotency keys in the transaction that made them: a repeated request acts only once."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from control.problems import ProblemError
from control.storage import queries
from control.storage.connection import Connection

SQL = queries.load("idempotency")

KEPT_ANSWERS = timedelta(days=1)
"""How long an answer is kept; the monitor deletes older ones."""

SECRETS = ("token", "secret")
"""Fields of an answer that are never kept."""


class AnswerRow(NamedTuple):
    """A stored answer, and the digest of the request that it answered."""

    request_digest: str
    response: Any


FIND = SQL.rows("find", AnswerRow)


def digest(method: str, path: str, query: bytes, body: bytes) -> str:
    """Return the sha256 of a request, in hex; requests with the same digest are the same request."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode(), query, body))).hexdigest()


@dataclass(frozen=True)
class KeptAnswer:
    """An answer that was given before; its body may be None."""

    response: Any


async def find(conn: Connection, operator: str, key: str, request_digest: str) -> KeptAnswer | None:
    """Return the answer stored under a key, or None. Raises: ProblemError, when the key came with another request."""
    row = await conn.fetchrow(FIND, operator, key)
    if row is None:
        return None
    if row.request_digest != request_digest:
        raise ProblemError(
            "idempotency_key_used",
            "this key came with another request before; use a new one for each request",
            field="Idempotency-Key",
        )
    return KeptAnswer(row.response)


async def once(
    conn: Connection,
    now: datetime,
    operator: str,
    key: str,
    request_digest: str,
    status: int,
    work: Callable[[Connection], Awaitable[Any]],
    renew: Callable[[Connection, Any], Awaitable[Any]] | None = None,
) -> Any:
    """Run `work(conn)` and store its result; the same request again gets the stored result.

    The fields `token` and `secret` of an answer aren't stored: `renew(conn, kept)` makes a new token for what the first
    request made, or reads the secret again.
    Raises: ProblemError idempotency_key_used, when the key came with another request.
    """
    if not key:
        return await work(conn)
    kept = await find(conn, operator, key, request_digest)
    if kept is not None:
        return kept.response if renew is None else await renew(conn, kept.response)
    result = msgspec.to_builtins(await work(conn))
    public = (
        {name: value for name, value in result.items() if name not in SECRETS} if isinstance(result, dict) else result
    )
    await conn.execute(SQL["keep"], operator, key, request_digest, status, public, now)
    return result
