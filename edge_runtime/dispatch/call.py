"""A call on its way through the front, and the orders that workers get in the same queue as calls."""

import asyncio
from collections.abc import Callable, Sequence

from edge_runtime.dispatch.outcomes import Outcome
from edge_runtime.dispatch.served_functions import ServedFunction
from edge_runtime.ipc import frames
from edge_runtime.ipc.call_times import CallTimes
from edge_runtime.ipc.request_head import PLAIN, Via
from edge_runtime.telemetry.call_traces import CallTrace, Passed

Body = bytes | list[bytes | bytearray]
"""The body of a request, whole or in pieces: a large one isn't copied just to join its pieces."""


def tick_key(name: str) -> str:
    """Return what names a function's ticks, which no function's name can be."""
    return f"{name}/schedule"


class Call:
    """A request to a function. It always ends exactly once, with an `Outcome`."""

    __slots__ = (
        "attempts", "began", "body", "client", "deadline", "deaths", "done", "ended", "generation", "gone", "head",
        "headers", "host", "id", "key", "method", "name", "params", "path", "query", "request_id", "route", "script",
        "sent", "served", "short", "timed", "times", "traced", "via",
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
        params: Sequence[tuple[str, str]] = (),
        via: Via = PLAIN,
        request_id: bytes = b"",
        host: str = "",
        generation: int = 0,
    ) -> None:
        """`done` is called with the outcome, from within the dispatch: it must not raise. Without a route, an
        empty `script` is /functions/NAME. The rest is as in `request_head.RequestTexts`."""
        self.name = name
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.client = client
        self.body = body
        self.ended = False
        self.done = done
        self.script = script if route else script or f"/functions/{name}"
        self.route = route
        self.params = params
        self.via = via
        self.request_id = request_id
        """The id that its answer, its error and its log lines name. Its worker doesn't get it, nor does its guest
        unless the manifest asks for it: calls with the same head share what a worker made of it."""
        self.host = host
        """The host of the route that it came by, as written in the manifest; empty if the route is for every host."""
        self.generation = generation
        """For a call that a tick makes: the release's generation, as it runs on no other; else 0."""
        self.key = tick_key(name) if generation else name
        """Names its queue, and the function as it is served there: ticks have their own of both."""
        self.traced: CallTrace | Passed | None = None
        """Its place in a trace, if it has one."""
        self.id = 0
        """Id of the attempt, a new one each time that the call is dispatched; 0 while the call waits."""
        self.began = 0.0
        """When it reached the pool (monotonic clock, seconds)."""
        self.attempts = 0
        """How often the call was dispatched."""
        self.deaths = 0
        """Workers that died when this call was their next one."""
        self.deadline = 0.0
        """Until when the call may wait to be dispatched (`clock.monotonic`)."""
        self.gone = False
        """The client has disconnected: nobody waits for the outcome."""
        self.sent = False
        """The call has sent an HTTP request that can't be sent twice, so it must not be dispatched again."""
        self.served: ServedFunction
        """The function that the call was last dispatched to; unset before the first attempt."""
        self.head = b""
        """The head of its frame (`request_head`), as the call was last dispatched; empty before the first attempt."""
        self.short = False
        """Whether the function's recent calls were short when this one was dispatched."""
        self.timed = False
        """Whether its worker is to report `times` no matter how long the call takes."""
        self.times: CallTimes | None = None
        """Where its time went in its worker; None if the worker hasn't reported it."""

    @property
    def writes(self) -> bool:
        """Whether the call, once dispatched, may write to the database."""
        return self.served.writes and self.method not in self.served.read_only

    def sends(self) -> None:
        """Note that the call is about to send an HTTP request that can't be sent twice."""
        self.sent = True

    def end(self, outcome: Outcome) -> None:
        """End the call; later outcomes are ignored."""
        if not self.ended:
            self.ended = True
            self.done(outcome)


class Order:
    """Something that the front asks of one worker, in the same queue as its calls."""

    __slots__ = ("answer", "crashed", "id", "kind", "short")

    def __init__(self, answer: asyncio.Future[frames.Frame], kind: int) -> None:
        """`kind` is that of its frame."""
        self.kind = kind
        self.answer = answer
        """Raises `frames.ChildGone` if the worker exited before it answered."""
        self.crashed = False
        """The worker died while it worked on this order, not on an earlier job."""
        self.id = 0
        self.short = False


Job = Call | Order
