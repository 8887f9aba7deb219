"""What a running call is ended for, and what its client is told when its worker has ended. Pure."""

import os
import signal
from typing import Final

from edge_runtime.dispatch.call import Call, Refusal
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.zygote_client import how
from edge_runtime.pauses import Pauses
from edge_runtime.settings import PoolLimits

GRACE: Final = 1.0
"""Seconds beyond its time limit for a call that its worker hasn't even started."""
COMMIT_LIMIT: Final = 5.0
"""Seconds that a commit may take beyond the call's own limit: they are the disk's, not the guest's."""
LOAD_LIMIT: Final = 30.0
"""Seconds that a worker may take to load a function that is called: none of them are the call's."""
ABANDONED: Final = 0.05
"""Seconds that a call may run, once its client has gone and others wait: ending a worker costs the others as much."""

# Why a worker is ended; all but the last are codes of the answer too.
TIME_LIMIT: Final = "time_limit"
MEMORY: Final = "memory_limit"
TEMP: Final = "sql_disk_limit"
LOCK_HELD: Final = "lock_held_too_long"
LOCK_WAIT: Final = "writer_busy"
CLIENT_GONE: Final = "client_gone"
STUCK: Final = "stuck"
CODES: Final = (TIME_LIMIT, MEMORY, TEMP, LOCK_HELD, LOCK_WAIT, CLIENT_GONE)
REASONS: Final = (*CODES, STUCK)


def overdue(
    call: Call,
    seen: progress_page.Seen,
    since: float,
    now: float,
    others_wait: bool,
    limits: PoolLimits,
    pauses: Pauses,
) -> str:
    """Why the worker must be ended whose first call is `call`, first since `since`; empty where it may go on.

    Waiting for the writer lock is not counted as running: it has its own limit. `now` is the monotonic clock's. Of no
    limit counts when the front didn't run.
    """
    limit = call.target.limit
    if seen.request != call.id:
        return STUCK if pauses.passed(since, now) > limit + GRACE else ""
    in_state = pauses.passed(seen.since_ns / 1e9, now)
    if seen.state == progress_page.LOADING:
        return STUCK if in_state > LOAD_LIMIT else ""
    ran = pauses.passed(seen.started_ns / 1e9, now) - seen.waited_ns / 1e9
    if seen.state == progress_page.COMMITTING:
        return STUCK if in_state > limit + COMMIT_LIMIT else ""
    if seen.state == progress_page.WAITING:
        ran -= in_state
        if in_state > limits.lock_wait:
            return LOCK_WAIT
    if ran > limit:
        return TIME_LIMIT
    if seen.state == progress_page.WRITING and in_state > limits.lock_hold:
        return LOCK_HELD
    return CLIENT_GONE if call.gone and others_wait and ran > ABANDONED else ""


def blames(why: str, state: int, status: int | None) -> bool:
    """Whether the worker's end, told as to `verdict`, is the fault of the function that it ran.

    A signal 9 that isn't the front's came from outside: no guest can send one. What a commit takes is the disk's.
    """
    if why:
        return why in (TIME_LIMIT, MEMORY, TEMP, LOCK_HELD) or (why == STUCK and state == progress_page.LOADING)
    outside = status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    return state != progress_page.COMMITTING and not outside


def verdict(call: Call, state: int, why: str, status: int | None, limits: PoolLimits) -> Refusal:
    """The answer to the call with which its worker ended: in `state` of the page, ended by the front for `why` or by
    itself (empty) with `status` as from waitpid."""
    name = call.name
    if state == progress_page.COMMITTING:
        text = f"The process of {name} ended while its changes were being committed: whether they are kept is unknown."
        return Refusal(502, "commit_unknown", text)
    if why == TIME_LIMIT:
        limit = call.target.function.manifest.time_limit_ms
        return Refusal(
            504, why, f"{name} ran longer than its manifest's time_limit_ms, {limit} ms. Nothing was changed."
        )
    if why == MEMORY:
        text = f"The process that ran {name} took more memory than a worker may. Nothing was changed."
        return Refusal(507, why, text)
    if why == TEMP:
        text = f"{name} had more temporary data on disk than a call may (temp_limit). Nothing was changed."
        return Refusal(507, why, text)
    if why == LOCK_HELD:
        text = f"{name} held the writer lock longer than {limits.lock_hold:g} s. Nothing was changed."
        return Refusal(504, why, text)
    if why == LOCK_WAIT:
        text = f"{name} waited for the writer lock longer than {limits.lock_wait:g} s. Nothing was changed."
        return Refusal(503, why, text, 1)
    if why == CLIENT_GONE:
        return Refusal(499, why, "The client went away.")
    overflow = ""
    if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV:
        overflow = " (so shows a guest whose stack overflows)"
    return Refusal(502, "worker_crashed", f"The process that ran {name} {how(status)}{overflow}. Nothing was changed.")
