"""Watching nodes' records as an operator does, and sending them as a node does."""

import io
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec
import orjson

from control.protocol import wire
from tests.support.deadlines import deadline
from tests.support.replica import Answered, Replica, TestNode

SOON = 60.0
"""Seconds in which what is waited for must come."""


def record(number: int, level: str = "info", **more: Any) -> dict[str, Any]:
    """A line of a function's log."""
    t = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"function": "orders", "version": 3, "release": 12, "call": f"ab-{number}", "message": f"line {number}"}
    return {"t": t, "kind": "log", "level": level, **told, **more}


def encoded(*records: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(r) + b"\n" for r in records)


class View:
    """An operator's open view."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self._rest = b""
        self._lines: list[Any] = []
        self.seen: list[Any] = []
        """All that came, with notices."""

    async def line(self) -> Any:
        """The next record or notice; None at the end."""
        while not self._lines:
            piece = await self._answer.content.readany()
            if not piece:
                return None
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self._lines = [orjson.loads(line) for line in lines if line]
        found = self._lines.pop(0)
        self.seen.append(found)
        return found

    async def until(self, wanted: Any) -> Any:
        """The next line for which `wanted` holds."""
        try:
            async with deadline(SOON):
                while (found := await self.line()) is not None:
                    if wanted(found):
                        return found
        except TimeoutError:
            raise AssertionError(f"it didn't come; what came last: {self.seen[-5:]}") from None
        raise AssertionError(f"the view ended; what came last: {self.seen[-5:]}")

    async def notice(self, kind: str) -> Any:
        """The first notice of a kind, which may have come already."""
        for line in self.seen:
            if line.get("notice") == kind:
                return line
        return await self.until(lambda line: line["kind"] == "notice" and line["notice"] == kind)

    async def message(self, text: str) -> Any:
        return await self.until(lambda line: line.get("message") == text)

    async def rest(self) -> list[Any]:
        """All that comes until the end, which must come."""
        found = []
        async with deadline(SOON):
            while (line := await self.line()) is not None:
                found.append(line)
        return found


@asynccontextmanager
async def viewing(replica: Replica, *, token: str | None = None, **query: Any) -> AsyncIterator[View]:
    """A view with these parameters; nodes are told of it when this returns."""
    headers = {"authorization": f"Bearer {token or replica.admin}"}
    url = f"{replica.url}/v1/logs?{urlencode(query)}"
    async with replica.session.get(url, headers=headers, timeout=aiohttp.ClientTimeout(None)) as answer:
        assert answer.status == 200, await answer.read()
        yield View(answer)


async def asked(node: TestNode, wait: float = 10.0) -> list[wire.Question]:
    """What a node is told by a poll, which it does again and again until it is told something."""
    async with deadline(SOON):
        while True:
            answer = await node.poll(wait)
            if answer.status == 200:
                break
    watch = msgspec.json.decode(answer.body, type=wire.Answer)
    assert isinstance(watch, wire.Watch), answer
    node.watching = watch.digest
    return watch.questions


async def send(
    node: TestNode, id: str, *records: dict[str, Any], raw: bytes | None = None, encoding: str = "", **query: Any
) -> Answered:
    """A batch of a node."""
    body = encoded(*records) if raw is None else raw
    headers = {"authorization": f"Bearer {node.credential}", "content-type": "application/x-ndjson"}
    if encoding:
        headers["content-encoding"] = encoding
        body = zlib.compress(body) if raw is None else body
    url = f"{node.replica.url}/v1/nodes/self/watches/{id}?{urlencode(query)}"
    async with node.replica.session.post(url, data=io.BytesIO(body), headers=headers) as answer:
        return Answered(answer.status, {n.lower(): v for n, v in answer.headers.items()}, await answer.read())


async def joined(replica: Replica, name: str, group: str = "default") -> TestNode:
    """A node that can be asked: it has told control its version of the protocol."""
    node = await replica.join(name, group)
    node.protocol, node.capabilities = 2, {"abi": ["wagi"]}
    await node.poll()
    return node
