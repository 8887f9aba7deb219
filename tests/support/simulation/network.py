"""The network of a run: requests and answers as bytes, which may be lost, doubled, late and out of order.

A node has one question under way, as an HTTP client has; but a copy of it that the network made may reach a replica
at any later time.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple, Protocol, Self

import msgspec

from edge_runtime.sync.control_client import (
    ANSWER_TIMEOUT,
    HELD_HEADER,
    RELEASE_HEADER,
    ControlClient,
    NoAnswer,
    ToldRelease,
    clock_skew,
    refusal,
    told_release,
)
from tests.support.simulation.loop import NodeTime, VirtualLoop
from tests.support.simulation.processes import Process


class Answer(NamedTuple):
    """A response, with what the client's `refusal` looks at."""

    status: int
    headers: dict[str, str]
    body: bytes
    date: datetime


@dataclass(eq=False)
class Request:
    """A request on its way, or on a connection that is held open."""

    method: str
    path: str
    token: str
    body: bytes
    answered: "asyncio.Future[Answer]"
    gone: "asyncio.Future[None]"
    """Done when its client has gone away."""
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass
class Weather:
    """How likely what goes wrong is, for one message; all 0 when faults have stopped."""

    lost: float = 0.0
    reset: float = 0.0
    doubled: float = 0.0
    late: float = 0.0


class Endpoint(Protocol):
    """Where requests go: a replica that runs."""

    process: Process

    def serve(self, request: Request) -> None:
        """Begin to answer `request`: its `answered` is set some time."""


@dataclass
class Network:
    """Carries requests to one replica or another, and their answers back."""

    loop: VirtualLoop
    random: Random
    endpoints: Callable[[], Sequence[Endpoint]]
    """The replicas that run now."""
    weather: Weather = field(default_factory=Weather)
    cut: set[str] = field(default_factory=set)
    """Names of processes that reach nobody."""
    sticky: bool = False
    """Whether a client keeps to one replica, as on one connection, while nothing goes wrong."""
    _near: dict[str, Endpoint] = field(default_factory=dict)
    """The replica that a client keeps to, by the client's name."""
    _silent: "list[asyncio.Future[Answer]]" = field(default_factory=list)
    """What is waited for in vain."""

    async def ask(
        self, process: Process, method: str, path: str, token: str, body: bytes, limit: float, key: str = ""
    ) -> Answer:
        """A request of `process` and its answer, which it waits for at most `limit` seconds; raises `NoAnswer`."""
        process.step("network.send")
        loop, weather, draw = self.loop, self.weather, self.random.random
        request = Request(method, path, token, body, loop.create_future(), loop.create_future(), _headers(token, key))
        arrived: asyncio.Future[Answer] = loop.create_future()
        if process.name not in self.cut and not draw() < weather.lost:
            loop.call_later(self._delay(), self._deliver, request, arrived, process.name)
        else:
            self._silent.append(arrived)
        if draw() < weather.doubled:
            copy = Request(method, path, token, body, loop.create_future(), loop.create_future(), request.headers)
            loop.call_later(self._delay() + draw() * 30, self._deliver_copy, copy)
        if draw() < weather.reset:
            loop.call_later(self._delay() * 2, _reset, arrived, "the connection was reset")
        try:
            async with asyncio.timeout(limit):
                answer = await arrived
        except NoAnswer:
            self._near.pop(process.name, None)
            raise
        except TimeoutError:
            self._near.pop(process.name, None)
            raise NoAnswer("timed_out", "control did not answer in time") from None
        finally:
            if not request.gone.done():
                request.gone.set_result(None)
        process.step("network.received")
        return answer

    def heal(self) -> None:
        """Be well from now on: nothing is lost any more, and who waits in vain hears so."""
        self.weather = Weather()
        self.cut.clear()
        for arrived in self._silent:
            _reset(arrived, "the connection was lost")
        self._silent.clear()

    def _delay(self) -> float:
        if self.weather.late and self.random.random() < self.weather.late:
            return self.random.random() * 20
        return 0.002 + self.random.random() * 0.02

    def _deliver_copy(self, copy: Request) -> None:
        """Deliver what was doubled, unless the network is well by now: then it forgets what it still had."""
        if self.weather.doubled:
            self._deliver(copy, self.loop.create_future(), "")

    def _deliver(self, request: Request, arrived: "asyncio.Future[Answer]", client: str) -> None:
        replicas = self.endpoints()
        if not replicas:
            _reset(arrived, "nobody listens")
            return
        near = self._near.get(client)
        replica = near if near in replicas else self.random.choice(replicas)
        if self.sticky and client:
            self._near[client] = replica

        def answered(future: "asyncio.Future[Answer]") -> None:
            if self.random.random() >= self.weather.lost:
                self.loop.call_later(self._delay(), _arrive, arrived, future.result())
            else:
                self._silent.append(arrived)

        request.answered.add_done_callback(answered)
        replica.process.died.add_done_callback(lambda _: _reset(arrived, "the replica has died"))
        replica.serve(request)


def _arrive(arrived: "asyncio.Future[Answer]", answer: Answer) -> None:
    if not arrived.done():
        arrived.set_result(answer)


def _reset(arrived: "asyncio.Future[Answer]", why: str) -> None:
    if not arrived.done():
        arrived.set_exception(NoAnswer("unreachable", why))
        arrived.exception()  # it may be that nobody waits any more


def _headers(token: str, key: str) -> tuple[tuple[bytes, bytes], ...]:
    headers = ((b"authorization", f"Bearer {token}".encode()), (b"content-type", b"application/json"))
    return (*headers, (b"idempotency-key", key.encode())) if key else headers


class NodeClient(ControlClient):
    """The node's own client, but for the connection: what it asks goes through the network of the run."""

    def __init__(self, network: Network, process: Process, credential: str) -> None:
        self.credential = credential
        self.skew = 0.0
        self.release: ToldRelease | None = None
        self.trust = ""
        self._network = network
        self._process = process

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """There is no connection to close."""

    async def _call(self, method: str, path: str, message: Any, wait: float = 0.0) -> tuple[int, bytes]:
        body = b"" if message is None else msgspec.json.encode(message)
        sent = NodeTime.now(UTC)
        answer = await self._network.ask(self._process, method, path, self.credential, body, wait + ANSWER_TIMEOUT)
        self.skew = clock_skew(answer.date.replace(microsecond=0), sent, NodeTime.now(UTC))
        self.release = told_release(answer.headers.get(RELEASE_HEADER, ""))
        self.held = HELD_HEADER in answer.headers
        if answer.status >= 300:
            raise refusal(answer, answer.body, True)  # type: ignore[arg-type]
        return answer.status, answer.body
