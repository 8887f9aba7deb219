"""Requests that reach no operation, through the whole application and without a server."""

from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from control.access.certificates import ControlCertificates
from control.access.sessions import Sessions
from control.clock import SystemClock
from control.live_settings import LiveSettings
from control.metrics import ControlMetrics
from control.reread_files import RereadFiles
from control.settings import ControlSettings
from control.web import starlette_app
from control.web.app import ControlApp

SETTINGS = ControlSettings(metadata_url="postgresql://u:p@127.0.0.1/d", artifacts_url="http://k:s@127.0.0.1:1/b")
ARTIFACT = f"/v1/artifacts/{'0' * 64}"


class Failures:
    """Takes refused authentications."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str]] = []

    def record(self, address: str, reason: str) -> None:
        self.recorded.append((address, reason))


class OnlyCounters:
    """Services of which nothing but the counters is needed."""

    def __init__(self) -> None:
        self.metrics = ControlMetrics()
        self.failures = Failures()
        self.settings = SETTINGS
        self.clock = SystemClock()
        self.tracing = None
        self.watching = SimpleNamespace(views={})
        self.auth = self.fleet = self.heartbeats = self.decisions = self.numbers = None
        self.certificates, self.reread = ControlCertificates(SETTINGS, SystemClock()), RereadFiles({}, SystemClock())
        self.live_settings = LiveSettings(SETTINGS)


@pytest.fixture
def app() -> ControlApp:
    made = ControlApp(SETTINGS, SystemClock())
    made.serve_with(OnlyCounters())  # type: ignore[arg-type]
    return made


def ask(app: ControlApp, method: str, path: str) -> tuple[int, httpx2.Headers, Any]:
    """Status, headers and JSON of an answer."""
    answer = TestClient(app, raise_server_exceptions=False, client=("192.0.2.1", 1)).request(method, path)
    # An answer to HEAD has no body.
    return answer.status_code, answer.headers, answer.json() if answer.content else {}


@pytest.mark.parametrize("path", ["/nowhere", "/healthz/", "/healthz%0A", "/v1/poll/", "/v1/functions/a/b"])
def test_a_path_where_nothing_is(app: ControlApp, path: str) -> None:
    status, headers, body = ask(app, "GET", path)
    assert (status, body["code"], headers["content-type"]) == (404, "no_such_path", "application/problem+json")
    assert headers["x-request-id"]
    assert 'route="none",status="404"' in app.services.metrics.render().decode()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/healthz", "GET"),
        ("DELETE", ARTIFACT, "GET, HEAD, PUT"),
        ("PATCH", "/v1/nodes", "GET, POST"),
        ("GET", "/v1/poll", "POST"),
    ],
)
def test_a_method_that_a_path_does_not_take(app: ControlApp, method: str, path: str, allowed: str) -> None:
    status, headers, body = ask(app, method, path)
    assert (status, body["code"], headers["allow"]) == (405, "method_not_allowed", allowed)
    assert body["detail"].endswith(f" takes {allowed}")


def test_head_is_a_method_of_its_own(app: ControlApp) -> None:
    status, headers, _ = ask(app, "HEAD", "/healthz")
    assert (status, headers["allow"]) == (405, "GET")


def test_who_is_refused_is_recorded_and_the_connection_ends(app: ControlApp) -> None:
    clock = SystemClock()
    operators = starlette_app.auth.Authenticator(None, clock, None, SETTINGS, None)  # type: ignore[arg-type]
    app.services.sessions = Sessions(None, clock, operators, None, None, None, SETTINGS)  # type: ignore[arg-type]

    async def in_time() -> None:
        pass

    app.services.fleet = SimpleNamespace(read_late=in_time)  # type: ignore[assignment]
    status, headers, body = ask(app, "GET", "/v1/nodes")
    assert (status, body["code"], headers["connection"]) == (401, "credentials_missing", "close")
    assert app.services.failures.recorded == [("192.0.2.1", "missing")]  # type: ignore[attr-defined]


def test_a_fault_of_controls_own_is_told_with_the_requests_id(
    app: ControlApp, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers, body = ask(app, "GET", "/readyz")  # there is no service that it could ask
    assert (status, body["code"]) == (500, "internal")
    assert headers["x-request-id"] in body["detail"]
    assert f"request {headers['x-request-id']}: GET /readyz failed" in caplog.text


def test_a_reply_is_sent_with_its_length(app: ControlApp) -> None:
    status, headers, body = ask(app, "GET", "/healthz")
    assert (status, body, headers["content-length"]) == (200, {"status": "ok"}, "15")


def test_a_websocket_is_refused(app: ControlApp) -> None:
    with pytest.raises(WebSocketDisconnect), TestClient(app).websocket_connect("/healthz"):
        pass
