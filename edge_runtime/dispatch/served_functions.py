"""The functions of the current release as calls see them, and the counts of each function."""

import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final, Protocol

from control.protocol.histogram import BOUNDS
from edge_runtime import clock
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.outcomes import Outcome, Refusal
from edge_runtime.ipc import frames
from edge_runtime.ipc.call_times import CallTimes
from edge_runtime.telemetry.call_counts import CallCounts, total
from edge_runtime.telemetry.call_records import MOST_NOTED, NotedCall
from edge_runtime.token_bucket import TokenBucket

# Not `Final`, whose values are built into what is compiled: tests change these.
SHORT = 0.002
"""Seconds: if a function's recent calls took less, its calls may queue in a worker behind other short calls."""
_WEIGHT: Final = 0.2
"""Weight of the newest call in a function's `recent` time."""
_OUTLIER: Final = 4.0
"""A call counts as at most this many times the recent ones: on a busy machine any call may be delayed now and then."""
LOG_BURST = 1 << 20
LOG_RATE = 64 * 1024
"""Bytes that the calls of one function may log at once, and then per second."""
MOST_DENIED: Final = 2**53
"""The highest count accepted from a worker: no real count is higher, and every JSON reader can represent it."""
RELEASES: Final = 2
"""Number of newest releases for which a function's calls are counted separately."""
MOST_RELEASES: Final = 4
"""The same while there are calls not yet reported to control."""


class EndedCall(Protocol):
    """A call that has ended, as far as it is counted and noted."""

    began: float
    request_id: bytes
    method: str
    script: str
    path: str
    times: CallTimes | None


@dataclass(slots=True)
class Tally:
    """A function's counts, over all its versions, since the front started."""

    name: str
    counts: dict[int, CallCounts] = field(default_factory=dict)
    """How the calls ended on each of the newest releases that have the function, by the release's number."""
    earlier: CallCounts = field(default_factory=lambda: CallCounts(0, 0))
    """The same on all releases before."""
    recent: float = 0.0
    """Seconds that recent calls took in a worker, weighted toward the newest; 0 before the first."""
    slow: float = 0.0
    """Seconds: as far as known, calls that took longer are among the slowest of the hour."""
    noted: list[NotedCall] = field(default_factory=list)
    """Calls that were slow or failed, and have no record yet (`CallRecords` makes it)."""
    unnoted: int = 0
    """Such calls that were left out since the last record."""
    denied: dict[str, int] = field(default_factory=dict)
    """Uses of what the manifest doesn't grant, by kind."""
    logged: dict[str, float] = field(default_factory=dict)
    """When a call's failure was last logged, by its code."""

    log: TokenBucket = field(default_factory=lambda: TokenBucket(LOG_BURST, LOG_RATE))
    """What the function's calls may log."""
    log_dropped: int = 0
    """Lines of the function's log that were left out, because it logged more."""
    log_said: int = 0
    """Dropped lines that the node's log has reported so far."""
    log_told: float = float("-inf")
    """When the node's log last reported dropped lines."""

    def of_release(self, index: int, release: int) -> CallCounts:
        """Return the counts of the calls on a release that is the function's newest; `index` is as in `CallCounts`."""
        counts = self.counts.pop(release, None)
        if counts is None or counts.index != index:
            if counts is not None:
                self.earlier.add(counts)
            counts = CallCounts(index, release)
        while len(self.counts) >= RELEASES:
            oldest = next(iter(self.counts))
            if not self.counts[oldest].all_told and len(self.counts) < MOST_RELEASES:
                break
            self.earlier.add(self.counts.pop(oldest))
        self.counts[release] = counts
        return counts

    @property
    def all(self) -> CallCounts:
        """All calls since the front started."""
        return total((self.earlier, *self.counts.values()))

    @property
    def outcomes(self) -> dict[str, int]:
        """All calls since the front started, by how they ended."""
        return self.all.outcomes

    def deny(self, kind: str, times: int = 1) -> None:
        self.denied[kind] = min(self.denied.get(kind, 0) + times, MOST_DENIED)

    @property
    def short(self) -> bool:
        """Whether recent calls were so short that several may be given to one worker."""
        return 0.0 < self.recent < SHORT


@dataclass(slots=True, eq=False)
class ServedFunction:
    """A function of the current release."""

    index: int
    """The function's place in the release."""
    function: frames.LocalFunction
    tally: Tally
    breaker: Breaker
    writes: bool
    """Whether its calls may write to the database."""
    limit: float
    """Seconds that a call may run."""
    release: int
    """Number of the release."""
    read_only: tuple[str, ...] = ()
    """The methods whose calls only read, although the function may write."""
    place: int = 0
    """The function's place among those of its release, sorted by name."""
    counts: CallCounts = field(init=False)
    """How its calls ended, on this release."""

    def __post_init__(self) -> None:
        self.counts = self.tally.of_release(self.place, self.release)

    def has(self, route: str, host: str) -> bool:
        """Return whether the release gives the function the route with this path, for this one of the route's hosts."""
        given = self.function.manifest.route
        return given is not None and given.path == route and (not given.hosts or host in given.hosts)

    def settle(
        self,
        call: EndedCall,
        outcome: Outcome,
        now: float,
        took: float | None = None,
        *,
        blamed: bool = False,
        ran: float | None = None,
    ) -> bool:
        """Count the end of a call, and tell the breaker; return whether that opened the breaker.

        `took` is the time in seconds that a worker needed for its answer, None if the call ended without one; `blamed`:
        the call killed its worker; `ran`: seconds for which a worker ran it before the worker died.
        """
        tally, breaker, counts = self.tally, self.breaker, self.counts
        # Like `name_of`, but inlined: every call passes here.
        kind = outcome.code if isinstance(outcome, Refusal) else "ok" if outcome.status < 500 else "answer_5xx"
        seconds = now - call.began
        outcomes, times, bucket = counts.outcomes, counts.times, bisect_left(BOUNDS, seconds)
        try:
            outcomes[kind] += 1
        except KeyError:
            outcomes[kind] = 1
        try:
            times[bucket] += 1
        except KeyError:
            times[bucket] = 1
        counts.total += seconds
        if kind != "ok" or seconds > tally.slow:
            if len(tally.noted) < MOST_NOTED:
                # Not the call: its body may be large.
                made = NotedCall(
                    time.time(), now, self.function, self.release, call.request_id, call.method,
                    call.script + call.path, kind, outcome.status, seconds, ran if took is None else took, call.times,
                )  # fmt: skip
                tally.noted.append(made)
            else:
                tally.unnoted += 1
        if took is not None:
            recent = tally.recent
            tally.recent = recent + (min(took, recent * _OUTLIER) - recent) * _WEIGHT if recent else took
            breaker.calls += 1
            if not breaker.closed:
                breaker.ended(call, clock.monotonic())
        elif blamed:
            return breaker.died(call, clock.monotonic())
        elif breaker.trial is call:
            breaker.untried(call)
        return False
