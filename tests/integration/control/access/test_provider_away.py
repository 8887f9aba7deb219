"""An OpenID provider that doesn't answer, or answers what it must not: who signs in waits for it once."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import ECKey

from control.access import openid_provider
from control.access.openid_provider import Provider
from control.problems import ProblemError
from control.settings import ControlSettings
from tests.support.clock import SetClock
from tests.support.control import until


class ProvidersServer:
    """Answers questions by HTTP with `answer`, by the question's number; None: never."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Any = lambda number: None
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = self.answer(self.asked)
        if body is None:
            await reader.read()
        else:
            raw = json.dumps(body).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(raw)
            writer.write(head + raw)
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[ProvidersServer]:
    made = ProvidersServer()
    listening = await asyncio.start_server(made.serve, "127.0.0.1")
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield made
    listening.close()


@pytest.fixture
async def clock() -> SetClock:
    return SetClock(timers="stand")


@pytest.fixture
async def client(server: ProvidersServer, clock: SetClock, tmp_path: Path) -> AsyncIterator[Provider]:
    (tmp_path / "grants.toml").write_text('[groups]\nops = ["admin"]\n')
    settings = ControlSettings(
        metadata_url="postgresql://nowhere/none",
        artifacts_url="http://key:secret@127.0.0.1:9/none",
        oidc_issuer=server.url,
        oidc_client_id="skerry",
        oidc_grants=tmp_path / "grants.toml",
        public_url="https://control.example",
    )
    made = Provider(settings, clock)
    yield made
    await made.close()


async def test_one_that_hangs_is_waited_for_once_by_all(
    server: ProvidersServer, clock: SetClock, client: Provider
) -> None:
    async def asked(times: int) -> bool:
        return server.asked == times

    signing_in = [asyncio.create_task(client.begin("/")) for _ in range(7)]
    await until(lambda: asked(1))
    # Who leaves ends nobody else's question.
    signing_in.pop(0).cancel()
    await clock.passes(openid_provider.PATIENCE)
    ended = await asyncio.gather(*signing_in, return_exceptions=True)
    assert [error.code for error in ended if isinstance(error, ProblemError)] == ["provider_unavailable"] * 6
    # What it did is believed for a while, and then it is asked once more.
    for _ in range(3):
        with pytest.raises(ProblemError, match="answers too slowly"):
            await client.begin("/")
    assert server.asked == 1
    clock.advance(openid_provider.FAILURE_KEPT)
    again = asyncio.create_task(client.begin("/"))
    await until(lambda: asked(2))
    again.cancel()


async def test_an_access_token_is_sent_only_where_a_header_can_have_it(
    server: ProvidersServer, client: Provider
) -> None:
    """It is a stranger's text, which control sends back to the provider."""
    ends = ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint")
    answers = [
        {"issuer": server.url, **dict.fromkeys(ends, server.url)},
        {"keys": [ECKey.generate_key("P-256", {"kid": "one", "use": "sig"}).as_dict(private=False)]},
        {"id_token": "a.b.c", "access_token": "x\r\ncookie: y"},
    ]
    server.answer = lambda number: answers[number - 1]
    address, secret = await client.begin("/")
    state = parse_qs(urlsplit(address).query)["state"]
    with pytest.raises(ProblemError, match="that no header can have") as refused:
        await client.finish(secret, {"state": state, "code": ["x"]})
    assert refused.value.code == "provider_unavailable"


@pytest.mark.parametrize(
    "endpoint", ["http://id.example/", "https://id.example/\r\nset-cookie: x=y", "https://id.example/ä", ""]
)
async def test_where_it_sends_browsers_is_a_url(server: ProvidersServer, client: Provider, endpoint: str) -> None:
    server.answer = lambda number: {
        "issuer": server.url,
        "authorization_endpoint": endpoint,
        "token_endpoint": server.url,
        "jwks_uri": server.url,
    }
    with pytest.raises(ProblemError, match="names an endpoint"):
        await client.begin("/")
