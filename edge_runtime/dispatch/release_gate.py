"""What the pool keeps waiting while the node's release changes, and which running calls the change waits for."""

import asyncio
import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

from edge_runtime.dispatch.call import Call, released
from edge_runtime.ipc import progress_page

if TYPE_CHECKING:
    from edge_runtime.dispatch.pool import Pool
    from edge_runtime.dispatch.worker_link import Link


STALE_PAUSE: Final = 0.02
"""Seconds, times a call's attempts."""


class Hold(Enum):
    """Which calls stay in their lines."""

    NOTHING = 0
    WRITES = 1
    """A release is being prepared: calls of functions that may write."""
    COMMIT = 2
    """It is being committed: the same ones, and all once a call finds the release in the file."""
    ALL = 3


def stale(pool: "Pool", call: Call) -> None:
    """Have a call dispatched again that has done nothing in the libsql file, because that holds another release or one
    is being applied."""
    if call.sent:
        pool.refuse(call, released(call))
        return
    if pool.hold is Hold.COMMIT and not call.target.writes:
        # The release is in the file, and the front told so any moment.
        pool.hold = Hold.ALL
    # It has run: what it waited before that doesn't count.
    call.deadline = 0.0
    if pool.holds(call.target):
        pool.again([call])
    else:
        # The file is ahead of the front, by the moment that the end of a commit takes to get known here.
        asyncio.get_running_loop().call_later(STALE_PAUSE * call.attempts, pool.again, [call])


async def settled(pool: "Pool", limit: float) -> None:
    """Wait for the running calls that a release's transaction has to come after: those that hold the writer lock or
    wait for it, which have limits of their own, and for `limit` seconds at most those that may write and have sent what
    can't be sent twice. Calls of functions that may write are held."""
    deadline = time.monotonic() + limit
    while True:
        left = deadline - time.monotonic()
        sent = left > 0 and any(_sent(pool, link) for link in pool.links)
        if not sent and not any(_locks(pool, link) for link in pool.links):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(left if sent else None):
                await pool.change()


def _sent(pool: "Pool", link: "Link") -> bool:
    """Whether a worker's call may write, and sends or has sent what can't be sent twice."""
    call = link.jobs[0] if link.jobs else None
    if not isinstance(call, Call) or not call.target.writes:
        return False
    seen = pool.seen(link.child.slot)
    # The page says so before the worker's request comes here.
    return call.sent or (seen.request == call.id and seen.state == progress_page.SENT)


def _locks(pool: "Pool", link: "Link") -> bool:
    """Whether a worker's call holds the writer lock, or waits for it."""
    if not link.jobs:
        return False
    seen = pool.seen(link.child.slot)
    return seen.request == link.jobs[0].id and seen.state in (
        progress_page.WAITING,
        progress_page.WRITING,
        progress_page.COMMITTING,
    )
