"""Clients whose other side sends what nobody asked for before its answer: they end, and hold nothing else up."""

import ast
import asyncio
import contextlib
import ipaddress
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from control.access.openid_provider import Provider
from control.clock import SystemClock
from control.problems import ProblemError
from control.protocol import bounded_http_client
from control.protocol.bounded_http_client import BoundedConnector
from control.protocol.manifest import HttpGrant
from control.settings import ControlSettings
from control.telemetry.webhooks import webhook_signature
from control.telemetry.webhooks.webhook_client import WebhookClient
from edge_runtime.egress.http_client import HttpClient
from edge_runtime.guests import http_json
from edge_runtime.ipc.http_messages import NotFetched
from tests.support.deadlines import deadline

INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"
FLOODS = {
    "interim answers": INTERIM * 4000,
    "an interim answer without an end": b"HTTP/1.1 103 Early Hints\r\n" + b"A: b\r\n" * 100_000,
    "large interim answers": (b"HTTP/1.1 100 Continue\r\n" + b"A: %b\r\n" % (b"b" * 8000) * 100 + b"\r\n"),
    "a status line without an end": b"HTTP/1.1 200 " + b"x" * 1_000_000,
}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.contextmanager
def server(*sent: bytes, again: bool = False) -> Iterator[tuple[int, list[bytes]]]:
    """A server in a thread of its own, which sends these after each request of a connection, the last of them for ever
    where it is to be sent `again`. Its port, and what it has got.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    got: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken, _ = listener.accept()
                with taken, contextlib.suppress(OSError):
                    while request := taken.recv(65_536):
                        got.append(request)
                        for part in sent:
                            taken.sendall(part)
                        while again:
                            taken.sendall(sent[-1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], got
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


async def by_webhook(port: int) -> str:
    headers = webhook_signature.headers(webhook_signature.new_secret(), "id", 0, b"{}")
    async with WebhookClient((ipaddress.ip_network("127.0.0.0/8"),), SystemClock()) as client:
        return (await client.post(f"http://127.0.0.1:{port}/", headers, b"{}")).error


async def by_guest(port: int) -> str:
    base = f"http://127.0.0.1:{port}"
    async with HttpClient() as client:
        try:
            await client.fetch(HttpGrant([base]), http_json.to_front(b'{"url": "%b/"}' % base.encode())[2])
        except NotFetched as error:
            return str(error)
    return ""


async def by_provider(port: int) -> str:
    with tempfile.NamedTemporaryFile(suffix=".toml") as grants:
        Path(grants.name).write_text('[groups]\nplatform = ["admin"]\n')
        settings = ControlSettings(
            metadata_url="postgresql://a@127.0.0.1/a",
            artifacts_url="http://k:s@127.0.0.1:1/b",
            oidc_issuer=f"http://127.0.0.1:{port}",
            oidc_grants=Path(grants.name),
        )
        provider = Provider(settings, SystemClock())
    try:
        await provider.begin("/")
    except ProblemError as error:
        return error.detail
    finally:
        await provider.close()
    return ""


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("ask", [by_webhook, by_guest, by_provider])
async def test_a_flood_before_an_answer_ends_the_request(ask: Callable[[int], Awaitable[str]], flood: str) -> None:
    longest, last = 0.0, asyncio.get_running_loop().time()

    async def watch() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.01)
            now = asyncio.get_running_loop().time()
            longest, last = max(longest, now - last), now

    with server(FLOODS[flood], again=True) as (port, _):
        watching = asyncio.create_task(watch())
        async with deadline(8):
            told = await ask(port)
        watching.cancel()
    assert told
    assert "hadn't answered" not in told
    assert longest < 2, "nothing else had its turn meanwhile"


async def get(session: aiohttp.ClientSession, port: int) -> str:
    async with session.get(f"http://127.0.0.1:{port}/") as answer:
        return f"{answer.status} {await answer.text()}"


async def test_some_interim_answers_are_no_answer() -> None:
    with server(INTERIM * bounded_http_client.MOST_INTERIM + ANSWER) as (port, got):
        async with aiohttp.ClientSession(connector=BoundedConnector()) as session:
            assert [await get(session, port) for _ in range(3)] == ["200 ok"] * 3
        assert len(got) == 3
    with server(INTERIM * (bounded_http_client.MOST_INTERIM + 1) + ANSWER) as (port, _):
        async with aiohttp.ClientSession(connector=BoundedConnector()) as session:
            with pytest.raises(aiohttp.ClientResponseError, match="interim answers"):
                await get(session, port)


async def test_an_answer_that_was_not_asked_for_is_nobodys() -> None:
    with server(ANSWER + ANSWER.replace(b"ok", b"no")) as (port, _):
        async with aiohttp.ClientSession(connector=BoundedConnector()) as session:
            assert [await get(session, port) for _ in range(3)] == ["200 ok"] * 3


async def test_a_large_answer_comes_whole() -> None:
    body = bytes(range(256)) * 8000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n" % (len(body), b"A: %b\r\n" % (b"b" * 900) * 100)
    with server(head, body) as (port, _):
        async with (
            aiohttp.ClientSession(connector=BoundedConnector()) as session,
            session.get(f"http://127.0.0.1:{port}/") as answer,
        ):
            assert await answer.read() == body


def test_every_client_of_ours_is_bounded() -> None:
    """botocore's and OpenTelemetry's are their own, and ask the store and the collector that an operator has named."""
    root, unbounded = Path(bounded_http_client.__file__).parents[2], []
    for path in [*(root / "control").rglob("*.py"), *(root / "edge_runtime").rglob("*.py")]:
        text = path.read_text()
        if "aiohttp" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("aiohttp.TCPConnector", "aiohttp.request") or (
                called == "aiohttp.ClientSession" and "connector" not in [word.arg for word in node.keywords]  # type: ignore[attr-defined]
            ):
                unbounded.append(f"{path.name}: {ast.unparse(node)[:60]}")
    assert unbounded == []
