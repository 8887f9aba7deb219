"""When a node polls, tries a sync or a report again, and gives up. Pure.

There is no I/O and no clock here: `agent` acts on the results. Durations are in seconds.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from control.protocol import wire
from control.protocol.counts import counted
from edge_runtime.errors import SyncFailed
from edge_runtime.redaction import redact

HOLD = 25.0
"""How long a poll asks control to hold it (control holds no longer)."""
RETRY_BASE = 5.0
RETRY_CAP = 300.0
"""A generation that failed is tried again after 5 s, 10 s, … 5 min, each time shortened by up to a quarter."""
HELD_FACTOR = 20.0
HELD_CAP = 3600.0
"""An attempt that kept calls waiting is repeated after at least 20 times as long (at most an hour), so that a release
that fails repeatedly keeps calls waiting for about a twentieth of the time."""
RETRY_FLOOR = 1.0
"""The fewest seconds between two attempts, even if control sends a failed plan again at once."""
CRASHES = 3
"""After this many consecutive processes that ended in the middle of a sync, the sync counts as failed."""
RECONNECT_BASE = 0.25
RECONNECT_CAP = 30.0
MOVES = 3
"""After this many consecutive replicas that send the node away because they are stopping, the poll counts as failed."""
REFUSED_BASE = 30.0
REFUSED_CAP = 300.0
"""Pauses between polls of a node whose credential is refused: it notices if that changes, and causes little load."""
ANSWER_CAP = 600.0
"""The most seconds that a node waits for a Retry-After of control or of something in between."""


@dataclass(frozen=True)
class FailedSync:
    """The generation that the node failed to reach, how often in a row, and when it will try again by itself."""

    generation: int
    attempts: int
    retry_at: datetime
    code: str
    message: str
    at: datetime

    def due(self, now: datetime) -> bool:
        """Return whether the next attempt may be made."""
        return now >= self.retry_at

    def told(self) -> wire.FailedGeneration:
        """Return what a poll says about the failure."""
        return wire.FailedGeneration(generation=self.generation, retry_at=self.retry_at)


def backoff(attempts: int, jitter: float, base: float, cap: float) -> float:
    """Return the seconds to wait after `attempts` (1, 2, …) consecutive failures.

    `jitter` in [0, 1) takes off up to a quarter.
    """
    # The exponent is bounded too: 2.0 ** 2000 overflows.
    return min(cap, base * 2.0 ** min(attempts - 1, 32)) * (1.0 - jitter / 4)


def failure(
    previous: FailedSync | None, generation: int, error: SyncFailed, now: datetime, jitter: float
) -> FailedSync:
    """Return the state after one more failed sync. Another generation than the last one's restarts the count."""
    same = previous is not None and previous.generation == generation
    attempts = previous.attempts + 1 if previous is not None and same else 1
    cost = min(HELD_CAP, error.held * HELD_FACTOR) * (1.0 - jitter / 4)
    wait = timedelta(seconds=max(cost, backoff(attempts, jitter, RETRY_BASE, RETRY_CAP)))
    # The message may contain a function's text, for instance its probe's answer.
    return FailedSync(generation, attempts, now + wait, error.code, redact(error.message), now)


def crashed(generation: int, release: int, crashes: int, now: datetime, jitter: float) -> FailedSync | None:
    """Return the state after `crashes` consecutive processes that ended in the middle of a sync to one generation.

    One end may be caused by a person or the machine, and the sync is simply repeated (None). From `CRASHES` on the
    release is to blame, and must not keep interrupting the previous one.
    """
    if crashes < CRASHES:
        return None
    wait = timedelta(seconds=backoff(crashes - CRASHES + 1, jitter, RETRY_BASE, RETRY_CAP))
    times = counted(crashes, "time")
    text = f"the node's process ended {times} in the middle of the sync to release {release}; see its log"
    return FailedSync(generation, crashes, retry_at=now + wait, code="node_crashed", message=text, at=now)


def told(failed: FailedSync | None, now: datetime) -> wire.FailedGeneration | None:
    """Return what the next poll says about a failed generation: None once it is due, so that control plans it."""
    return failed.told() if failed is not None and not failed.due(now) else None


def hold(failed: FailedSync | None, now: datetime) -> float:
    """Return how many seconds the next poll may be held.

    A poll isn't held past the moment at which a failed generation is due again, and not at all once it is due, so that
    the node learns at once whether control still wants it.
    """
    if failed is None:
        return HOLD
    return max(0.0, min(HOLD, (failed.retry_at - now).total_seconds()))


def pause_before(failed: FailedSync | None, generation: int, now: datetime) -> float:
    """Return the seconds until a plan of control may be started: usually none, but never a hot loop."""
    if failed is None or failed.generation != generation:
        return 0.0
    return max(0.0, min(RETRY_FLOOR, RETRY_FLOOR - (now - failed.at).total_seconds()))


def pause_after(status: int | None, retry_after: float | None, attempts: int, jitter: float) -> float:
    """Return the seconds until the next poll, after `attempts` consecutive failures of control or the network.

    `status` is None if no HTTP answer came. A Retry-After is respected and extended by up to a quarter, so that nodes
    that were sent away together don't return together.
    """
    if status in (401, 403):
        return backoff(attempts, jitter, REFUSED_BASE, REFUSED_CAP)
    if retry_after is not None:
        return min(ANSWER_CAP, max(RECONNECT_BASE, retry_after) * (1.0 + jitter / 4))
    if status is not None and final(status):
        return backoff(attempts, jitter, REFUSED_BASE / 6, REFUSED_CAP)
    return backoff(attempts, jitter, RECONNECT_BASE, RECONNECT_CAP)


def pause_between_replicas(retry_after: float | None, jitter: float) -> float:
    """Return the seconds until the next poll, after a stopping replica sent the node away or closed its connection.

    It is immediate, but nodes that were sent away together don't all reach the other replica at once.
    """
    return min(1.0, retry_after or RECONNECT_BASE) * jitter


def final(status: int) -> bool:
    """Return whether an HTTP status of a report is final: resending the report can't change it."""
    return 400 <= status < 500 and status not in (401, 403, 408, 425, 429)


def superseded(state: wire.SyncState) -> bool:
    """Return whether control no longer wants this sync, because a newer generation has replaced it."""
    return state.status == "superseded"
