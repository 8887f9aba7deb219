"""The functions of the current release as calls see them, and what is counted of each function."""

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
"""Seconds: calls of a function whose recent ones took less may queue in a worker behind others of that kind."""
_WEIGHT: Final = 0.2
"""Weight of the newest call in a function's recent time."""
_OUTLIER: Final = 4.0
"""A call counts as at most so many times the recent ones: on a busy machine any call may be held up now and then."""
LOG_BURST = 1 << 20
LOG_RATE = 64 * 1024
"""Bytes that the calls of one function may log at once, and then per second."""
MOST_DENIED: Final = 2**53
"""A count that a worker says: so large that none is larger, and each reader of JSON takes it."""
RELEASES: Final = 2
"""How many of the newest releases have a function's calls counted apart."""
MOST_RELEASES: Final = 4
"""The same while there are calls that control hasn't been told of."""


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
    """What is counted of a function, over all its versions, since the front started."""

    name: str
    counts: dict[int, CallCounts] = field(default_factory=dict)
    """How the calls ended on each of the newest releases that have the function, by the release's number."""
    earlier: CallCounts = field(default_factory=lambda: CallCounts(0, 0))
    """The same on all releases before."""
    recent: float = 0.0
    """Seconds that recent calls took in a worker, the newest ones counting most; 0 before the first."""
    slow: float = 0.0
    """Seconds: calls that took longer are among the slowest ones of the hour, as far as is known."""
    noted: list[NotedCall] = field(default_factory=list)
    """Calls that were slow or failed, and have no record yet (`CallRecords` makes it)."""
    unnoted: int = 0
    """Such calls that were left out, since the last record."""
    denied: dict[str, int] = field(default_factory=dict)
    """Uses of what the manifest doesn't grant, by kind."""
    logged: dict[str, float] = field(default_factory=dict)
    """When a call's failure was last logged, by its code."""

    log: TokenBucket = field(default_factory=lambda: TokenBucket(LOG_BURST, LOG_RATE))
    """What the function's calls may log."""
    log_dropped: int = 0
    """Lines of the function's log that were left out, because it logged more."""
    log_said: int = 0
    """Dropped lines that the node's log has told of so far."""
    log_told: float = float("-inf")
    """When the node's log last told of dropped lines."""

    def of_release(self, index: int, release: int) -> CallCounts:
        """Return the counts of a release's calls, which are this function's newest; `index` as in `CallCounts`."""
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
        """Whether recent calls took so little time that several may be given to one worker."""
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
    """The methods by which its calls only read, although it may write."""
    place: int = 0
    """The function's place among those of its release, sorted by name."""
    counts: CallCounts = field(init=False)
    """How its calls ended, on this release."""

    def __post_init__(self) -> None:
        self.counts = self.tally.of_release(self.place, self.release)

    def has(self, route: str, host: str) -> bool:
        """Tell whether the release gives the function the route of this path, for this one of a route's hosts."""
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
        """Count the end of a call, and let the breaker know; return whether that has opened the breaker.

        `took` is the time in seconds that a worker needed for its answer, None where the call ended without one;
        `blamed`: the call killed its worker; `ran`: the time in seconds for which a worker ran it that then ended.
        """
        tally, breaker, counts = self.tally, self.breaker, self.counts
        # As `name_of` says it: this is the way of each call.
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
