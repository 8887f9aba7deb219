"""Which running calls a change of the node's release, or of its database, waits for."""

from collections.abc import Iterable
from contextlib import suppress

from edge_runtime import clock
from edge_runtime.dispatch.call import Call, Job
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import progress_page


async def settled(pool: Pool, limit: float) -> None:
    """Wait for the running calls that must end before a release's transaction.

    Those are calls that hold the writer lock or wait for it (which have their own limits), and, for `limit` seconds at
    most, calls that may write and have sent an HTTP request that can't be sent twice. Writes must be held, so that no
    more of them start: calls dispatched from now on aren't waited for, whatever a worker says about them.
    """
    deadline = clock.monotonic() + limit
    given = [(link, set(link.jobs)) for link in pool.links]
    while True:
        left = deadline - clock.monotonic()
        waited = [(link, jobs.intersection(link.jobs)) for link, jobs in given]
        sent = left > 0 and any(_sent(link, jobs) for link, jobs in waited)
        if not sent and not any(_locks(link, jobs) for link, jobs in waited):
            return
        with suppress(TimeoutError):
            async with clock.timeout(left if sent else None):
                await pool.change()


async def ended(pool: Pool, limit: float) -> None:
    """Wait until no worker has a call, for `limit` seconds at most. All calls must be held, so that no more start."""
    with suppress(TimeoutError):
        async with clock.timeout(limit):
            while any(isinstance(job, Call) for link in pool.links for job in link.jobs):
                await pool.change()


# The worker may be at a later job than its first: the front hasn't read the answers before it then.


def _sent(link: WorkerLink, jobs: Iterable[Job]) -> bool:
    """Return whether one of a worker's jobs may write, and sends or has sent an HTTP request that can't be sent
    twice."""
    seen = link.seen()
    return any(
        # The shared page shows it before the worker's frame arrives.
        isinstance(job, Call)
        and job.writes
        and (job.sent or (seen.request == job.id and seen.state == progress_page.SENT))
        for job in jobs
    )


def _locks(link: WorkerLink, jobs: Iterable[Job]) -> bool:
    """Return whether one of a worker's jobs holds the writer lock or waits for it."""
    seen = link.seen()
    return any(seen.request == job.id for job in jobs) and seen.state in (
        progress_page.WAITING,
        progress_page.WRITING,
        progress_page.COMMITTING,
    )
