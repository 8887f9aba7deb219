"""The node's client over real TLS: what each fault on the way to control is called, and where the credential goes."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from control.local.pki import Pki, ensure
from control.protocol import wire
from edge_runtime.errors import SyncFailed
from edge_runtime.sync import control_client
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from tests.support.certificates import Authority
from tests.support.deadlines import deadline
from tests.support.file_server import FileServer, Proxy, connect_proxy, file_server

POLL = wire.Poll(generation=0, digest="a" * 64)
NAME = "control.test"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return ensure(tmp_path_factory.mktemp("named-pki"), [NAME])


@pytest.fixture
async def control(named: Pki) -> AsyncIterator[FileServer]:
    """A TLS server that answers what the test wants: for faults that the real control doesn't have."""
    async with file_server(named) as server:
        yield server


@pytest.fixture
async def proxy(control: FileServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    async with connect_proxy() as running:
        running.target = ("127.0.0.1", port(control))
        monkeypatch.setenv("HTTPS_PROXY", running.url.replace("http://", "http://me:s3cret@"))
        yield running


def port(server: FileServer) -> int:
    return int(server.url.rpartition(":")[2])


def answering(control: FileServer, response: web.Response, path: str = "/v1/poll") -> None:
    control.answer[path] = lambda _: response


async def poll(control: FileServer, pki: Pki, url: str = "") -> wire.Answer | None:
    async with ControlClient(url or control.url, pki.ca, "skn_secret") as session:
        return await session.poll(POLL)


async def test_answers_are_typed(control: FileServer, named: Pki) -> None:
    answering(control, web.Response(status=204))
    assert await poll(control, named) is None
    answering(control, web.json_response({"type": "report", "from_the_future": 1}))
    assert await poll(control, named) == wire.Report()
    assert control.requests[0][1]["authorization"] == "Bearer skn_secret"


@pytest.mark.parametrize("body", ['{"type": "dance"}', "{", '{"type": "plan"}', "[]", ""])
async def test_an_answer_that_makes_no_sense_says_what_to_upgrade(control: FileServer, named: Pki, body: str) -> None:
    answering(control, web.Response(text=body))
    with pytest.raises(ControlRefused, match="upgrade") as caught:
        await poll(control, named)
    assert caught.value.code == "answer_unknown"


async def test_a_problem_of_control_keeps_its_code_and_words(control: FileServer, named: Pki) -> None:
    body = msgspec.json.encode(wire.Problem("database_busy", "Busy", 503, "too many writes"))
    answering(control, web.Response(status=503, body=body, headers={"Retry-After": "7"}))
    with pytest.raises(ControlRefused) as caught:
        await poll(control, named)
    error = caught.value
    assert (error.status, error.code, error.message, error.retry_after) == (503, "database_busy", "too many writes", 7)


async def test_an_error_page_of_something_in_between_is_shown_as_that(control: FileServer, named: Pki) -> None:
    answering(control, web.Response(status=502, text="<html>\n<h1>Bad Gateway</h1>" + "x" * 10_000))
    with pytest.raises(ControlRefused, match=r"something before it.*502: <html> <h1>Bad Gateway") as caught:
        await poll(control, named)
    assert caught.value.code == "http_502"
    assert len(caught.value.message) < 400


async def test_a_call_to_control_is_not_redirected_with_its_credential(control: FileServer, named: Pki) -> None:
    async with file_server(named) as other:
        control.redirect["/v1/poll"] = f"{other.url}/v1/poll"
        with pytest.raises(ControlRefused) as caught:
            await poll(control, named)
        assert caught.value.status == 307
        assert not other.requests


async def test_a_control_with_another_authority_is_not_trusted(control: FileServer, tmp_path: Path) -> None:
    other = ensure(tmp_path / "other")
    with pytest.raises(NoAnswer, match="not trusted") as caught:
        await poll(control, other)
    assert caught.value.code == "tls_untrusted"
    assert not control.requests


async def test_a_clock_that_is_years_behind_is_named(pki: Pki, tmp_path: Path) -> None:
    """As after a start without a battery: by it, the certificate is one of years to come."""
    authority = Authority()
    certificate, key = authority.issue("control", timedelta(days=9), timedelta(days=1)).put(tmp_path, "control")
    async with file_server(replace(pki, certificate=certificate, key=key)) as control:
        with pytest.raises(NoAnswer, match=r"this machine's clock, which says 20\d\d-.* set the clock right") as caught:
            async with ControlClient(control.url, authority.put(tmp_path, "ca"), "x") as session:
                await session.poll(POLL)
    assert caught.value.code == "clock_behind"
    assert not control.requests


async def test_a_certificate_for_another_name_is_not_trusted(control: FileServer, pki: Pki, proxy: Proxy) -> None:
    async with file_server(pki) as nameless:
        proxy.target = ("127.0.0.1", port(nameless))
        with pytest.raises(NoAnswer) as caught:
            await poll(nameless, pki, f"https://{NAME}:8443")
        assert caught.value.code == "tls_untrusted"
        assert not nameless.requests


async def test_nobody_there(named: Pki) -> None:
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:1") as caught:
        async with ControlClient("https://127.0.0.1:1", named.ca, "x") as session:
            await session.poll(POLL)
    assert caught.value.code == "unreachable"


async def test_a_connection_that_is_cut(control: FileServer, named: Pki) -> None:
    control.files["/v1/poll"] = b"x" * 100_000
    control.cut_after = [10]
    with pytest.raises(NoAnswer) as caught:
        await poll(control, named)
    assert caught.value.code == "unreachable"


async def test_a_control_that_says_nothing_is_given_up(
    control: FileServer, named: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "ANSWER_TIMEOUT", 0.2)
    control.slow = 60.0
    with pytest.raises(NoAnswer, match="in time") as caught:
        async with deadline(30):
            await poll(control, named)
    assert caught.value.code == "timed_out"


async def test_the_clock_of_control_is_noted(control: FileServer, named: Pki) -> None:
    answering(control, web.Response(status=204, headers={"Date": "Tue, 24 Nov 2099 12:00:00 GMT"}))
    async with ControlClient(control.url, named.ca, "x") as session:
        assert session.skew == 0
        await session.poll(POLL)
        assert session.skew > 10**9
        answering(control, web.Response(status=204))
        await session.poll(POLL)
        assert session.skew == 0


async def test_a_proxy_is_used_with_its_own_credentials_and_never_sees_the_nodes(
    control: FileServer, named: Pki, proxy: Proxy
) -> None:
    answering(control, web.Response(status=204))
    assert await poll(control, named, f"https://{NAME}:8443") is None
    assert len(proxy.heads) == 1
    assert proxy.heads[0].startswith(f"CONNECT {NAME}:8443 HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic bWU6czNjcmV0" in proxy.heads[0]
    assert "skn_secret" not in proxy.heads[0]
    assert "proxy-authorization" not in control.requests[0][1]


async def test_loopback_goes_around_the_proxy(control: FileServer, named: Pki, proxy: Proxy) -> None:
    answering(control, web.Response(status=204))
    assert await poll(control, named) is None
    assert not proxy.heads


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_proxy_that_refuses_is_named_without_its_password(
    control: FileServer, named: Pki, proxy: Proxy, status: int
) -> None:
    proxy.status = status
    with pytest.raises(NoAnswer, match=str(status)) as caught:
        await poll(control, named, f"https://{NAME}:8443")
    assert caught.value.code == "proxy_failed"
    assert proxy.url in caught.value.message
    assert "s3cret" not in caught.value.message


async def test_a_proxy_that_is_not_there(named: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(NoAnswer) as caught:
        async with ControlClient(f"https://{NAME}:8443", named.ca, "x") as session:
            await session.poll(POLL)
    assert caught.value.code == "proxy_failed"


def test_a_file_that_is_no_authority_is_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(ValueError, match="holds no PEM certificate"):
        ControlClient("https://control", tmp_path / "ca.pem", "x")


async def pieces() -> AsyncIterator[bytes]:
    yield b"ro"
    yield b"ws"


async def put(control: FileServer, pki: Pki, url: str) -> None:
    async with ControlClient(control.url, pki.ca, "skn_secret") as session:
        await session.put_backup(url, pieces(), 4, bytes(16), 30.0)


async def test_a_file_of_a_backup_goes_to_a_store_through_the_proxy_and_without_the_credential(
    control: FileServer, named: Pki, proxy: Proxy
) -> None:
    answering(control, web.Response(), "/bucket/key?sig=%2F")
    await put(control, named, f"https://{NAME}:8443/bucket/key?sig=%2F")
    ((_, headers),) = control.requests
    assert len(proxy.heads) == 1
    assert "authorization" not in headers
    told = headers["if-none-match"], headers["content-md5"], headers["content-length"]
    assert told == ("*", "AAAAAAAAAAAAAAAAAAAAAA==", "4")
    assert "transfer-encoding" not in headers


async def test_a_file_of_a_backup_goes_to_control_with_the_credential(control: FileServer, named: Pki) -> None:
    answering(control, web.Response(status=201), "/v1/file")
    await put(control, named, "/v1/file")
    assert control.requests[0][1]["authorization"] == "Bearer skn_secret"


async def test_no_file_of_a_backup_goes_in_the_clear_or_where_a_redirect_leads(control: FileServer, named: Pki) -> None:
    with pytest.raises(SyncFailed, match="for a file of the backup") as refused:
        await put(control, named, f"http://{NAME}/bucket/key")
    assert refused.value.code == "artifact_url_refused"
    control.redirect["/key"] = f"{control.url}/other"
    with pytest.raises(ControlRefused) as redirected:
        await put(control, named, f"{control.url}/key")
    assert redirected.value.status == 307
    assert [path for path, _ in control.requests] == ["/key"]
