"""Requests under way for calls: one of a worker at a time, each answered once, given up when the worker ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from control.protocol.manifest import HttpGrant, Manifest
from edge_runtime.dispatch.served_functions import Tally
from edge_runtime.egress.http_client import RequestsInFlight
from edge_runtime.guests import http_json
from edge_runtime.ipc import frames, http_messages
from edge_runtime.ipc.http_messages import NotFetched
from tests.support.edge import until


class FakeEgress:
    """Answers when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, bytes]] = []
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.given_up = 0

    async def __aenter__(self) -> "FakeEgress":
        return self

    async def __aexit__(self, *ended: object) -> None:
        pass

    async def fetch(self, grant: Any, request: bytes, sending: Any, _traceparent: str) -> bytes:
        self.asked.append((grant, request))
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            self.given_up += 1
            raise


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, id: int, kind: int, head: bytes, body: bytes) -> None:
        assert kind == frames.HTTP_ANSWER
        self.sent.append((id, orjson.loads(http_json.to_guest(body))))


class FakeFunction:
    def __init__(self) -> None:
        manifest = Manifest(http=HttpGrant(["a.example"]))
        self.function = frames.LocalFunction("f", 1, "", manifest, "")
        self.tally = Tally("f")


class FakeCall:
    def __init__(self, id: int) -> None:
        self.id = id
        self.served = FakeFunction()
        self.traced = None

    def sends(self) -> None:
        """As of a real call."""


@contextlib.asynccontextmanager
async def running(egress: FakeEgress) -> AsyncIterator[Any]:
    fetches: Any = RequestsInFlight(egress)  # type: ignore[arg-type]
    task = asyncio.ensure_future(fetches.run())
    await asyncio.sleep(0)
    try:
        yield fetches
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_an_answer_goes_to_the_worker_that_asked() -> None:
    egress = FakeEgress()
    async with running(egress) as fetches:
        link, other, call = FakeLink(), FakeLink(), FakeCall(7)
        fetches.begin(link, call, b"first")
        fetches.begin(other, FakeCall(8), b"other")
        # A worker that asks again before it was answered is none of ours: the first request goes on alone.
        fetches.begin(link, call, b"second")
        await until(lambda: len(egress.asked) == 2)
        assert [request for _, request in egress.asked] == [b"first", b"other"]
        assert [(id, told["error"]["code"]) for id, told in link.sent] == [(7, "http_failed")]
        egress.answer.set_result(http_messages.answer(200, [], b"text"))
        await until(lambda: len(link.sent) == 2 and other.sent)
        assert [(id, told["body"]) for id, told in (link.sent[1], other.sent[0])] == [(7, "text"), (8, "text")]
        fetches.begin(link, call, b"third")
        await until(lambda: len(link.sent) == 3)


@pytest.mark.parametrize(
    ("error", "code", "denied"),
    [
        (NotFetched("not_granted", "no", "http_host"), "not_granted", {"http_host": 1}),
        (NotFetched("http_timeout", "late"), "http_timeout", {}),
        (RuntimeError("a mistake"), "http_failed", {}),
    ],
)
async def test_what_failed_is_told_and_what_was_denied_is_counted(
    error: Exception, code: str, denied: dict[str, int]
) -> None:
    egress = FakeEgress()
    egress.answer.set_exception(error)
    async with running(egress) as fetches:
        link, call = FakeLink(), FakeCall(7)
        fetches.begin(link, call, b"")
        await until(lambda: link.sent)
        assert link.sent[0][1]["error"]["code"] == code
        assert call.served.tally.denied == denied


async def test_a_request_ends_with_its_worker() -> None:
    egress = FakeEgress()
    async with running(egress) as fetches:
        link = FakeLink()
        fetches.begin(link, FakeCall(7), b"")
        await until(lambda: egress.asked)
        link.ended.set_result(None)
        await until(lambda: egress.given_up == 1)
        assert link.sent == []


async def test_a_node_that_stops_answers_at_once() -> None:
    egress = FakeEgress()
    async with running(egress) as fetches:
        link = FakeLink()
        fetches.begin(link, FakeCall(7), b"")
        await until(lambda: egress.asked)
    assert egress.given_up == 1
    late = FakeLink()
    fetches.begin(late, FakeCall(8), b"")
    assert [(id, told["error"]["code"]) for id, told in late.sent] == [(8, "http_failed")]
