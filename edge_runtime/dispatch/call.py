"""A call on its way through the front, and the orders that workers are given in line with calls."""

import asyncio
from collections.abc import Callable, Sequence

from edge_runtime.dispatch.outcomes import Outcome
from edge_runtime.dispatch.served_functions import ServedFunction
from edge_runtime.ipc import frames
from edge_runtime.ipc.call_times import CallTimes
from edge_runtime.ipc.request_head import PLAIN, Via
from edge_runtime.telemetry.call_traces import CallTrace, Passed

Body = bytes | list[bytes | bytearray]
"""The body of a request, whole or in pieces: a large one isn't copied to put its pieces together."""


class Call:
    """A request to a function. It ends once, always, with an `Outcome`."""

    __slots__ = (
        "attempts", "began", "body", "client", "deadline", "deaths", "done", "ended", "gone", "head", "headers", "host",
        "id", "method", "name", "params", "path", "query", "request_id", "route", "script", "sent", "served", "short",
        "timed", "times", "traced", "via",
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
    ) -> None:
        """`done` is called with the outcome, from within the dispatch: it must not raise. An empty `script` is
        /functions/NAME. The rest is as in `request_head.RequestTexts`."""
        self.name = name
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.client = client
        self.body = body
        self.ended = False
        self.done = done
        self.script = script or f"/functions/{name}"
        self.route = route
        self.params = params
        self.via = via
        self.request_id = request_id
        """The id by which its answer, its error and the lines of its log name it. Its worker isn't told, nor its guest
        unless the manifest asks for it: calls with the same head share what was made of that."""
        self.host = host
        """The host of its route by which it came, as the manifest has it; empty where the route is for every host."""
        self.traced: CallTrace | Passed | None = None
        """Its place in a trace, if it has one."""
        self.id = 0
        """Id of the attempt, another one each time that the call is dispatched; 0 while the call waits."""
        self.began = 0.0
        """When it came to the pool (monotonic clock, seconds)."""
        self.attempts = 0
        """How often the call was dispatched."""
        self.deaths = 0
        """Workers that ended when the call was the next one that they had."""
        self.deadline = 0.0
        """Until when the call may wait to be dispatched (`clock.monotonic`)."""
        self.gone = False
        """The client has gone: nobody waits for the outcome."""
        self.sent = False
        """The call has sent an HTTP request that can't be sent twice, so it must not be dispatched again."""
        self.served: ServedFunction
        """The function that the call was last dispatched to; unset before the first attempt."""
        self.head = b""
        """The head of its frame (`request_head`), as the call was last dispatched; empty before the first attempt."""
        self.short = False
        """Whether the function's recent calls were short when this one was dispatched."""
        self.timed = False
        """Whether its worker is to tell `times` however long it takes."""
        self.times: CallTimes | None = None
        """Where its time went in its worker; None where the worker hasn't told."""

    @property
    def writes(self) -> bool:
        """Whether the call, which was dispatched, may write to the database."""
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
    """Something that the front asks of one worker, in line with the calls."""

    __slots__ = ("answer", "crashed", "id", "kind", "short")

    def __init__(self, answer: asyncio.Future[frames.Frame], kind: int) -> None:
        """`kind` is that of its frame."""
        self.kind = kind
        self.answer = answer
        """Ends with `frames.ChildGone`, when the worker ended before it had answered."""
        self.crashed = False
        """The worker ended while it worked on this order, and not on what it had been given before."""
        self.id = 0
        self.short = False


Job = Call | Order
