"""A call on its way through the front, and how it can end."""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from control import wire
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.ipc import frames
from edge_runtime.logs import Budget

if TYPE_CHECKING:
    from edge_runtime.dispatch.worker_link import Link

SHORT: Final = 0.002
"""Seconds: calls of a function whose recent ones took less may queue in a worker behind others of that kind."""
QUICK: Final = 0.001
"""Seconds: calls of a function whose recent ones took less keep to few workers."""
_WEIGHT: Final = 0.2
"""Of the newest call, in a function's recent time."""
_OUTLIER: Final = 4.0
"""A call counts as at most so many times the recent ones: on a busy machine any call may be held up now and then."""
LOG_BURST: Final = 1 << 20
LOG_RATE: Final = 64 * 1024
"""Bytes that the calls of one function may log at once, and then a second."""
TIMES: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Seconds: bounds between which calls are counted by what they took."""

Body = bytes | list[bytes | bytearray]
"""A request's, whole or in pieces: a large one isn't copied to put them together."""


class Answer(NamedTuple):
    """What a guest answered."""

    status: int
    head: bytes
    """Its header lines as they go out: `frames` says how."""
    body: bytes | memoryview
    release: int
    """Number of the release that it ran on."""


class Refusal(NamedTuple):
    """Why a call has no answer of a guest's."""

    status: int
    code: str
    message: str
    retry_after: int = 0
    """Seconds after which it makes sense to ask again; 0 where it doesn't say."""
    allow: str = ""
    """The methods that there are, where the request's isn't one."""


Outcome = Answer | Refusal


@dataclass(slots=True)
class Tally:
    """What is counted of a function, over all its versions, since the front started."""

    name: str
    outcomes: dict[str, int] = field(default_factory=dict)
    """By the code of the refusal, "ok" for answers."""
    recent: float = 0.0
    """Seconds that recent calls took in a worker, the newest ones counting most; 0 before the first."""
    total: float = 0.0
    """Seconds that all calls took in workers."""
    times: list[int] = field(default_factory=lambda: [0] * (len(TIMES) + 1))
    """How many took so long: up to each of `TIMES`, and longer."""
    denied: dict[str, int] = field(default_factory=dict)
    """Uses of what its manifest doesn't grant, by kind."""
    logged: dict[str, float] = field(default_factory=dict)
    """When a call's failure was last logged, by its code."""

    log: Budget = field(default_factory=lambda: Budget(LOG_BURST, LOG_RATE))
    """What its calls may log."""
    log_dropped: int = 0
    """Lines of its log that were left out, because it logged more."""
    log_said: int = 0
    """How many of them the node's log has told of."""
    log_told: float = float("-inf")
    """When it last did."""

    def deny(self, kind: str, times: int = 1) -> None:
        self.denied[kind] = self.denied.get(kind, 0) + times

    def took(self, seconds: float) -> None:
        recent = self.recent
        self.recent = recent + (min(seconds, recent * _OUTLIER) - recent) * _WEIGHT if recent else seconds
        self.total += seconds
        self.times[bisect_left(TIMES, seconds)] += 1

    @property
    def short(self) -> bool:
        return 0.0 < self.recent < SHORT


@dataclass(slots=True, eq=False)
class Line:
    """A function's calls on this node, whichever version they are for: those that wait, and who has the others."""

    name: str
    concurrency: int = 1
    """Workers that its calls may have at once."""
    few: int = 1
    """As many are enough while its calls are quick: the front needs a processor too, and each waking costs."""
    quick: bool = False
    """Its recent calls took no longer than the front's own work for them."""
    queue: int = 0
    """Calls that may wait."""
    target: "Target | None" = None
    """The function in the current release; None where that has no such one."""
    calls: deque["Call"] = field(default_factory=deque)
    """Those that wait, the next one first."""
    links: dict["Link", int] = field(default_factory=dict)
    """The workers that have calls of it, and how many."""

    def left(self, link: "Link") -> None:
        """A worker has one of its calls no more."""
        if self.links[link] == 1:
            del self.links[link]
        else:
            self.links[link] -= 1

    @property
    def spreads(self) -> bool:
        """Whether its next call may have a worker that has none of its calls."""
        if len(self.links) >= self.concurrency:
            return False
        return not self.quick or sum(not link.longs for link in self.links) < self.few


@dataclass(slots=True, eq=False)
class Target:
    """A function of the current release."""

    index: int
    function: frames.LocalFunction
    tally: Tally
    line: Line
    breaker: Breaker
    writes: bool
    limit: float
    """Seconds that a call may run."""
    release: int
    """Number of the release."""

    def has(self, route: str) -> bool:
        """Whether the release gives the function this route."""
        given = self.function.manifest.route
        return given is not None and given.path == route


class Call:
    """A request to a function. It ends once, always, with an `Outcome`."""

    __slots__ = (
        "attempts", "body", "client", "deadline", "done", "ended", "gone", "headers", "id", "method", "name", "params",
        "path", "query", "route", "script", "sent", "short", "target",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        method: str,
        path: str,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        client: str,
        body: Body,
        done: Callable[[Outcome], None],
        script: str = "",
        route: str = "",
        params: list[tuple[str, str]] | None = None,
    ) -> None:
        """`done` gets the outcome, from within the pool: it must not raise. The rest as in `frames.CallHead`."""
        self.name = name
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.client = client
        self.body = body
        self.ended = False
        self.done = done
        self.script = script
        self.route = route
        self.params = params
        self.id = 0
        """Of the attempt: another one each time that it is dispatched."""
        self.attempts = 0
        self.deadline = 0.0
        """Until when it may wait to be dispatched (monotonic clock)."""
        self.gone = False
        """Its client has gone: nobody waits for the outcome."""
        self.sent = False
        """It has sent an HTTP request that can't be sent twice, so it must not be dispatched again."""
        self.target: Target
        """What it was dispatched to last; not there before."""
        self.short = False

    def head(self, serial: int) -> bytes:
        return frames.encode_head(
            (
                serial, self.target.index, self.method, self.path, self.query, self.headers, self.client, self.script,
                self.route, self.params or (),
            )
        )  # fmt: skip

    def sends(self) -> None:
        """It is about to send an HTTP request that can't be sent twice."""
        self.sent = True

    def end(self, outcome: Outcome) -> None:
        if not self.ended:
            self.ended = True
            self.done(outcome)


class Order:
    """Something that the front asks of one worker, in line with the calls."""

    __slots__ = ("answer", "crashed", "id", "short")

    def __init__(self, answer: asyncio.Future[frames.Frame]) -> None:
        self.answer = answer
        """Error: `frames.ChildGone` where the worker ended before it had answered."""
        self.crashed = False
        """The worker ended over it, and not over what it had been given before."""
        self.id = 0
        self.short = False


Job = Call | Order


def unknown(name: str) -> Refusal:
    """The current release has no such function."""
    shown = name if wire.NAME.fullmatch(name) else name[:63].encode("unicode_escape").decode()
    return Refusal(404, "function_unknown", f"This node's release has no function {shown}.")


def released(call: Call) -> Refusal:
    """A release came before the first SQL of a call that can't be run again."""
    text = (
        f"The node's release changed while {call.name} ran, before its first SQL and after it had sent an HTTP request "
        "that can't be sent twice: so it wasn't run again. It has written nothing to the database."
    )
    return Refusal(503, "release_changed", text)


def log_full() -> Refusal:
    """The database's write-ahead log is too long."""
    text = (
        "The node's database can't take more writes just now: its write-ahead log is at its limit, because reading "
        "calls overlap all the time or the disk is slow. Nothing was changed; try again."
    )
    return Refusal(503, "wal_full", text, 1)


def cut_off(name: str, left: int) -> Refusal:
    """The function's breaker is open."""
    text = f"{name} is cut off for {left} s: its calls ended their processes again and again."
    return Refusal(503, "circuit_open", text, left)
