"""The node's client: what is control's URL, what is loopback, when a proxy is used, whose clock is wrong."""

from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import aiohttp
import pytest
from yarl import URL

from edge_runtime.sync import control_client


@pytest.mark.parametrize(
    "url",
    ["http://control:8443", "control:8443", "https://", "ftp://control", "https://me:secret@control", "https://[::1"],
)
def test_a_control_url_that_is_not_plain_https_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="control"):
        control_client.control_base(url)


def test_a_control_url_is_cut_down_to_its_origin() -> None:
    assert (
        str(control_client.control_base("https://control.example.org:8443/some/where?x=1"))
        == "https://control.example.org:8443"
    )


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("a.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("example.org", False),
        (None, False),
    ],
)
def test_loopback_is_known_by_name_and_address(host: str | None, loopback: bool) -> None:
    assert control_client.is_loopback(host) is loopback


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def test_the_proxy_of_the_environment_is_used_with_its_credentials_apart(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://me:s3cret@proxy:3128")
    proxy, headers = control_client.proxy_for(URL("https://control.example.org/v1/poll"))
    assert str(proxy) == "http://proxy:3128"
    assert headers == {"Proxy-Authorization": "Basic bWU6czNjcmV0"}


def test_a_proxy_without_a_scheme_is_an_http_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("https_proxy", "proxy:3128")
    assert control_client.proxy_for(URL("https://control.example.org"))[0] == URL("http://proxy:3128")


@pytest.mark.parametrize(
    "url", ["https://localhost:1", "https://127.0.0.1", "https://[::1]:1", "http://127.0.0.1:9400/a"]
)
def test_loopback_never_goes_through_a_proxy(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy:3128")
    environment.setenv("HTTP_PROXY", "http://proxy:3128")
    environment.setenv("ALL_PROXY", "http://proxy:3128")
    assert control_client.proxy_for(URL(url)) == (None, {})


def test_no_proxy_is_honoured(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy:3128")
    environment.setenv("NO_PROXY", "example.org,other")
    assert control_client.proxy_for(URL("https://control.example.org"))[0] is None
    assert control_client.proxy_for(URL("https://control.example.com"))[0] is not None
    assert control_client.proxy_for(URL("https://control.example.com/x"))[0] is not None


def test_without_a_proxy_in_the_environment_there_is_none(environment: pytest.MonkeyPatch) -> None:
    assert control_client.proxy_for(URL("https://control.example.org")) == (None, {})


@pytest.mark.parametrize(
    ("said", "held", "skew"),
    [
        # The time of a poll is its beginning or its end, or any between.
        (0, 25, 0),
        (12, 25, 0),
        (25, 25, 0),
        (-1.5, 25, 0),
        (26.5, 25, 0),
        (-600, 25, -600),
        (625, 25, 600),
        (600, 0, 600),
    ],
)
def test_a_held_poll_is_no_clock_that_is_wrong(said: float, held: float, skew: float) -> None:
    sent = datetime(2026, 11, 24, tzinfo=UTC)
    found = control_client.clock_skew(sent + timedelta(seconds=said), sent, sent + timedelta(seconds=held))
    assert found == skew


@pytest.mark.parametrize(
    ("cause", "cut"),
    [
        (ConnectionResetError(), True),
        (ConnectionAbortedError("SSL handshake is taking longer than 60.0 seconds"), True),
        (ConnectionRefusedError(111, "Connection refused"), False),
        (OSError(113, "No route to host"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_connection_that_was_ended_is_told_from_one_that_was_refused(cause: OSError, cut: bool) -> None:
    """A replica that stops ends connections; where nothing listens there is no replica."""
    key = Mock(host="control", port=1, ssl=True, is_ssl=True)
    error = control_client.unreachable(aiohttp.ClientConnectorError(key, cause), URL("https://control:1"), None)
    assert (error.code, error.cut) == ("unreachable", cut)
    assert error.message.startswith("no connection to control:1: ")
    assert not error.message.endswith(": ")


def test_a_connection_that_ends_without_an_answer_was_ended() -> None:
    for cause in (aiohttp.ServerDisconnectedError(), aiohttp.ClientOSError(104, "Connection reset by peer")):
        assert control_client.unreachable(cause, URL("https://control:1"), None).cut
    assert not control_client.unreachable(aiohttp.ClientPayloadError("broken"), URL("https://control:1"), None).cut


@pytest.mark.parametrize("body", [b"<html>", b'{"type":"\xe9"}', b'{"a":' + b"[" * 100_000])
def test_an_answer_of_something_before_control_is_told_as_that(body: bytes) -> None:
    refused = control_client.refusal(Mock(status=502, headers={}), body, own=True)
    assert (refused.status, refused.code) == (502, "http_502")
    assert refused.message.startswith("control (or something before it) answered 502: ")
