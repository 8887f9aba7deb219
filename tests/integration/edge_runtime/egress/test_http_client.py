"""HTTP that the front makes for functions, against a real server: what goes along, what comes back, where it leads."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from control.access import certificates
from control.local import pki
from control.protocol.checked_resolver import AddressRefused
from control.protocol.manifest import HttpGrant
from edge_runtime.egress import http_client
from edge_runtime.egress.http_client import HttpClient, is_own, reachable
from edge_runtime.guests import http_json
from edge_runtime.ipc.http_messages import NotFetched

BIG = 100_000


async def echo(request: web.Request) -> web.StreamResponse:
    told = {
        "method": request.method,
        "target": request.raw_path,
        "headers": [[name.decode(), value.decode()] for name, value in request.raw_headers],
        "body": (await request.read()).decode("latin-1"),
    }
    return web.json_response(told, headers={"Set-Cookie": "session=1", "X-Twice": "1"})


async def redirect(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/elsewhere"})


async def big(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff" * BIG)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x" * 65_536)
    return response


async def slow(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"x")
    with contextlib.suppress(ConnectionError):
        await asyncio.sleep(60)
    return response


async def heads(request: web.Request) -> web.StreamResponse:
    return web.Response(headers={f"X-{number}": "1" for number in range(300)})


async def packed(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"not gzip at all", headers={"Content-Encoding": "gzip"})


@contextlib.asynccontextmanager
async def server(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Its port on 127.0.0.1."""
    app = web.Application()
    for page in (redirect, big, endless, slow, heads, packed):
        app.router.add_get(f"/{page.__name__}", page)
    app.router.add_route("*", "/{rest:.*}", echo)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def grant(*hosts: str, **more: Any) -> HttpGrant:
    return HttpGrant(list(hosts), **{"methods": ("GET", "POST", "HEAD"), "time_limit_ms": 10_000, **more})


async def fetch(made: HttpClient, allowed: HttpGrant, url: str, **more: Any) -> Any:
    _, _, parcel = http_json.to_front(orjson.dumps({"url": url, **more}))
    return orjson.loads(http_json.to_guest(await made.fetch(allowed, parcel)))


async def failure(made: HttpClient, allowed: HttpGrant | None, url: str, **more: Any) -> NotFetched:
    with pytest.raises(NotFetched) as error:
        await made.fetch(allowed, http_json.to_front(orjson.dumps({"url": url, **more}))[2])
    assert str(error.value)
    return error.value


async def test_nothing_goes_along_but_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with server() as port, HttpClient() as made:
        base = f"http://127.0.0.1:{port}"
        allowed = grant(base)
        for _ in range(2):
            got = await fetch(
                made, allowed, f"{base}/a%2Fb/%7e?x=%20&y", method="POST", headers=[["X-A", "1"]], body="ü"
            )
            assert got["status"] == 200
            told = orjson.loads(got["body"])
            assert (told["method"], told["target"], told["body"]) == ("POST", "/a%2Fb/%7e?x=%20&y", "Ã¼")
            # The cookie of the first answer isn't in the second request.
            assert sorted(name.lower() for name, _ in told["headers"]) == [
                "content-length",
                "host",
                "user-agent",
                "x-a",
            ]
            assert ["Host", f"127.0.0.1:{port}"] in told["headers"]
            assert ["set-cookie", "session=1"] in got["headers"]
        assert (await fetch(made, allowed, f"{base}/x", method="HEAD"))["body"] == ""
        assert (await fetch(made, allowed, f"{base}/x", headers=[["user-agent", "mine"]]))["body"].count("mine") == 1


async def test_no_redirect_is_followed_and_nothing_is_unpacked() -> None:
    async with server() as port, HttpClient() as made:
        base = f"http://127.0.0.1:{port}"
        got = await fetch(made, grant(base), f"{base}/redirect")
        assert got["status"] == 302
        assert ["location", "/elsewhere"] in got["headers"]
        assert (await fetch(made, grant(base), f"{base}/packed"))["body"] == "not gzip at all"


async def test_sizes_and_times_have_bounds() -> None:
    async with server() as port, HttpClient() as made:
        base = f"http://127.0.0.1:{port}"
        assert len((await fetch(made, grant(base, response_bytes=BIG), f"{base}/big"))["body"]["$blob"]) > BIG
        assert (await failure(made, grant(base, response_bytes=BIG - 1), f"{base}/big")).code == "http_too_large"
        assert (await failure(made, grant(base), f"{base}/endless")).code == "http_too_large"
        assert (await failure(made, grant(base, request_bytes=1), f"{base}/x", body="ab")).code == "http_too_large"
        assert (await failure(made, grant(base, time_limit_ms=100), f"{base}/slow")).code == "http_timeout"
        assert (await failure(made, grant(base), f"{base}/heads")).code == "http_failed"
        # After all that it still answers.
        assert (await fetch(made, grant(base), f"{base}/x"))["status"] == 200


@contextlib.asynccontextmanager
async def words(answer: bytes) -> AsyncIterator[int]:
    """A server that answers so, whatever it is asked; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-SECRET\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie SECRET\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: SECRET" + b"a" * 20_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nSECRET",
        b"",
    ],
)
async def test_what_is_told_of_a_failure_has_neither_the_url_nor_the_answer_in_it(answer: bytes) -> None:
    """A key in a URL's query would else be in a plug-in's error, which goes to its caller and into the log."""
    async with words(answer) as port, HttpClient() as made:
        base = f"http://127.0.0.1:{port}"
        error = await failure(made, grant(base), f"{base}/?key=SECRET")
        assert error.code == "http_failed"
        assert "SECRET" not in str(error)


async def test_headers_are_utf8_both_ways() -> None:
    told = b"HTTP/1.1 200 OK\r\nX-A: \xc3\xa9\xe2\x82\xac\r\nX-B: \xe9\r\nContent-Length: 0\r\n\r\n"
    async with words(told) as port, HttpClient() as made:
        base = f"http://127.0.0.1:{port}"
        got = await fetch(made, grant(base), base)
        assert got["headers"] == [["x-a", "é€"], ["x-b", "é"], ["content-length", "0"]]
    async with server() as port, HttpClient() as made:
        base = f"http://127.0.0.1:{port}"
        got = await fetch(made, grant(base), base, headers=[["X-A", "é€"]])
        assert ["X-A", "é€"] in orjson.loads(got["body"])["headers"]


async def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def nowhere(host: str, *args: Any) -> Any:
        """What a name server says of x.invalid: one that is out of reach would be waited for."""
        if host == "x.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args)

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    # Bound, so that nobody else takes its port, and nothing listens there.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with HttpClient() as made:
            base = f"http://127.0.0.1:{bound.getsockname()[1]}"
            assert (await failure(made, grant(base), f"{base}/")).code == "http_failed"
            for name in ("x.invalid", "a..invalid", f"{'a' * 70}.invalid"):
                assert (await failure(made, grant("*.invalid"), f"https://{name}/")).code == "http_failed"
            assert (await failure(made, None, f"{base}/")).denied == "http_host"


async def test_certificates_are_checked(tmp_path: Path) -> None:
    keys = pki.ensure(tmp_path, ["localhost"])
    trusting = ssl.create_default_context(cafile=str(keys.ca))
    async with server(certificates.server_context(keys.certificate, keys.key)) as port:
        url, allowed = f"https://localhost:{port}/x", grant(f"localhost:{port}")
        async with HttpClient(tls=trusting) as made:
            assert (await fetch(made, allowed, url))["status"] == 200
        async with HttpClient() as made:
            assert (await failure(made, allowed, url)).code == "http_failed"


async def test_a_name_leads_to_public_addresses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server of the attacker's own says where the name leads (DNS rebinding)."""
    real = socket.getaddrinfo

    def lying(host: str, *args: Any) -> Any:
        return real("127.0.0.1" if host == "evil.example" else host, *args)

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    async with server() as port:
        url, allowed = f"http://evil.example:{port}/", grant(f"http://*.example:{port}", f"http://evil.example:{port}")
        async with HttpClient() as made:
            error = await failure(made, allowed, url)
            assert (error.code, error.denied) == ("not_granted", "http_address")
        async with HttpClient([ipaddress.ip_network("127.0.0.0/8")]) as made:
            assert (await fetch(made, allowed, url))["status"] == 200
        async with HttpClient() as made:
            local = f"http://localhost:{port}"
            assert (await fetch(made, grant(local), f"{local}/"))["status"] == 200


@pytest.mark.parametrize(
    ("host", "address", "networks", "may"),
    [
        ("a.example", "93.184.215.14", [], True),
        ("a.example", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", [], True),
        ("a.example", "127.0.0.1", [], False),
        ("a.example", "::1", [], False),
        ("a.example", "::ffff:127.0.0.1", [], False),
        ("a.example", "0.0.0.0", [], False),
        ("a.example", "10.1.2.3", [], False),
        ("a.example", "172.16.0.1", [], False),
        ("a.example", "192.168.0.1", [], False),
        ("a.example", "100.64.0.1", [], False),
        ("a.example", "169.254.169.254", [], False),
        ("a.example", "fe80::1", [], False),
        ("a.example", "fd00::1", [], False),
        ("a.example", "fec0::1", [], False),
        ("a.example", "64:ff9b::7f00:1", [], False),
        ("a.example", "2002:7f00:1::", [], False),
        ("a.example", "224.0.0.1", [], False),
        ("a.example", "255.255.255.255", [], False),
        ("a.example", "10.1.2.3", ["10.0.0.0/8"], True),
        ("a.example", "fd00::1", ["10.0.0.0/8", "fd00::/8"], True),
        ("localhost", "127.0.0.1", [], True),
        ("localhost", "::1", [], True),
        ("localhost", "93.184.215.14", [], False),
        ("localhost.example", "127.0.0.1", [], False),
    ],
)
def test_where_a_name_may_lead(host: str, address: str, networks: list[str], may: bool) -> None:
    allowed = [ipaddress.ip_network(network) for network in networks]
    assert reachable(host, ipaddress.ip_address(address), allowed) is may


async def test_a_name_leads_to_no_public_address_of_the_nodes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What listens there may be for the machine alone, whatever networks the operator has allowed."""
    mine = "93.184.215.14"
    monkeypatch.setattr(http_client, "is_own", lambda address: str(address) == mine)
    for networks in ([], [ipaddress.ip_network(mine)]):
        resolver = http_client.resolver(networks)
        with pytest.raises(AddressRefused):
            await resolver.resolve(mine, 443)
        assert [found["host"] for found in await resolver.resolve("93.184.215.15", 443)] == ["93.184.215.15"]
        await resolver.close()


def test_the_nodes_own_address_is_known() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("93.184.215.14"))
