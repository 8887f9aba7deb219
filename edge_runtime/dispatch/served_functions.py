"""The functions of the current release as calls see them, and what is counted of each function."""

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.outcomes import Outcome, Refusal
from edge_runtime.ipc import frames
from edge_runtime.token_bucket import TokenBucket

SHORT: Final = 0.002
"""Seconds: calls of a function whose recent ones took less may queue in a worker behind others of that kind."""
_WEIGHT: Final = 0.2
"""Weight of the newest call in a function's recent time."""
_OUTLIER: Final = 4.0
"""A call counts as at most so many times the recent ones: on a busy machine any call may be held up now and then."""
LOG_BURST: Final = 1 << 20
LOG_RATE: Final = 64 * 1024
"""Bytes that the calls of one function may log at once, and then per second."""
TIMES: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper bounds of the histogram of call times, in seconds."""


@dataclass(slots=True)
class Tally:
    """What is counted of a function, over all its versions, since the front started."""

    name: str
    outcomes: dict[str, int] = field(default_factory=dict)
    """Calls by the code of their refusal, "ok" for answers."""
    recent: float = 0.0
    """Seconds that recent calls took in a worker, the newest ones counting most; 0 before the first."""
    total: float = 0.0
    """Seconds that all calls took in workers."""
    times: list[int] = field(default_factory=lambda: [0] * (len(TIMES) + 1))
    """Calls by the time that they took: up to each bound of `TIMES`, and longer."""
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

    def deny(self, kind: str, times: int = 1) -> None:
        self.denied[kind] = self.denied.get(kind, 0) + times

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

    def has(self, route: str) -> bool:
        """Tell whether the release gives the function this route."""
        given = self.function.manifest.route
        return given is not None and given.path == route

    def settle(
        self, call: object, outcome: Outcome, now: float, took: float | None = None, *, blamed: bool = False
    ) -> bool:
        """Count the end of a call, and let the breaker know; return whether that has opened the breaker.

        `took` is the time in seconds that a worker needed for its answer, None where the call ended without one;
        `blamed`: the call killed its worker.
        """
        tally, breaker = self.tally, self.breaker
        kind = outcome.code if isinstance(outcome, Refusal) else "ok"
        tally.outcomes[kind] = tally.outcomes.get(kind, 0) + 1
        if took is not None:
            recent = tally.recent
            tally.recent = recent + (min(took, recent * _OUTLIER) - recent) * _WEIGHT if recent else took
            tally.total += took
            tally.times[bisect_left(TIMES, took)] += 1
            breaker.calls += 1
            if not breaker.closed:
                breaker.ended(call, now)
        elif blamed:
            return breaker.died(call, now)
        elif breaker.trial is call:
            breaker.untried(call)
        return False
