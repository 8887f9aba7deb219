"""A client that asks again where the database had one of CockroachDB's errors, as an operator's and a node's do.

Only where such errors come at random, or many write one row at once: elsewhere such an answer is what a test wants to
see.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import uuid4

from control.problems import ProblemError

T = TypeVar("T")
REPEATS = False
"""Whether it asks again; set by tests whose database has errors at random, or whose writers meet."""
REPEATED = ("commit_unknown", "database_busy")
ATTEMPTS = 20


def key() -> str:
    """Return an idempotency key for a request that may have to be repeated; '' where it won't be."""
    return str(uuid4()) if REPEATS else ""


async def answered(ask: Callable[[], Awaitable[T]], problem: Callable[[T], Any]) -> T:
    """Return what `ask` answers, asked again while `problem` returns a body that says to ask again."""
    for attempt in range(ATTEMPTS):
        answer = await ask()
        body = problem(answer) if REPEATS else None
        if not (isinstance(body, dict) and body.get("code") in REPEATED):
            break
        await asyncio.sleep(0.01 * attempt)
    return answer


async def saved(write: Callable[[], Awaitable[None]]) -> None:
    """Run what writes in the background until it has, as its loop would."""
    for attempt in range(ATTEMPTS):
        try:
            await write()
            return
        except ProblemError as problem:
            if not REPEATS or problem.code not in REPEATED or attempt == ATTEMPTS - 1:
                raise
