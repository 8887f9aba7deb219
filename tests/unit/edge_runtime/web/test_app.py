"""Who may call a node: the Host header where it has no token, and web pages, by what the manifests say."""

from pathlib import Path
from typing import NamedTuple

import pytest

from control.protocol.manifest import Cors, Manifest, Route
from edge_runtime.dispatch.pool import Hold, Pool
from edge_runtime.errors import CODES
from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.settings import EdgeSettings
from edge_runtime.web.app import EdgeApp
from edge_runtime.web.parser import Exchange
from edge_runtime.web.routes import Match
from tests.support.pool_settings import pool_settings


def pool(release: LocalRelease | None = None, hold: Hold = Hold.NOTHING) -> Pool:
    """A pool without workers that serves a release."""
    made = Pool(pool_settings(1))
    made.release, made.hold = release, hold
    return made


def admitted(listen: str, host: bytes | None) -> str:
    """The code of the refusal, or none."""
    app = EdgeApp(EdgeSettings(Path("state"), listen=listen), pool(), dict, bytes)
    asked = Exchange("POST", b"/functions/f", b"", [])
    asked.host = host
    refusal = app.admit(asked)
    return refusal.code if refusal is not None else ""


@pytest.mark.parametrize(
    ("listen", "host", "code"),
    [
        ("127.0.0.5:80", b"127.0.0.5", ""),
        ("127.0.0.5:80", b"127.0.0.5:80", ""),
        ("127.0.0.5:80", b"127.0.0.6", "host_refused"),
        ("127.0.0.1:80", b"127.0.0.5", "host_refused"),
        ("[::1]:80", b"[::1]", ""),
        ("[::1]:80", b"::1", "host_refused"),
        ("localhost:80", b"LocalHost:80", ""),
        ("localhost:80", b"", "host_refused"),
        ("localhost:80", None, "host_refused"),
    ],
)
def test_where_it_listens_is_its_own_host(listen: str, host: bytes | None, code: str) -> None:
    assert admitted(listen, host) == code


# Requests of web pages. What is decided of them is in test_site_policy.py.

FUNCTIONS = {
    "open": Manifest(cors=Cors(["http://a.example"], methods=("GET", "POST"))),
    "every": Manifest(cors=Cors(["*"])),
    "page": Manifest(navigation=True, route=Route("/page", ["GET"])),
    "put": Manifest(cors=Cors(["http://a.example"], methods=("PUT",)), route=Route("/put", ["PUT"])),
    "plain": Manifest(),
}
RELEASE = LocalRelease("", 1, 1, 0, [LocalFunction(name, 1, "", m, "") for name, m in FUNCTIONS.items()])
SITE = b"sec-fetch-site"
FOREIGN = [(SITE, b"cross-site")]
LINK = [*FOREIGN, (b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document")]
A = [*FOREIGN, (b"origin", b"http://a.example")]


class Asked(NamedTuple):
    code: str
    """Of its refusal."""
    cors: bytes
    target: Match | bytes | None


def asked(
    method: str,
    path: bytes,
    headers: list[tuple[bytes, bytes]],
    token: str = "",
    release: LocalRelease | None = RELEASE,
) -> Asked:
    """A request to localhost:80, and what is decided of it."""
    serving = pool(release, Hold.NOTHING if release is not None else Hold.ALL)
    app = EdgeApp(EdgeSettings(Path("state"), listen="127.0.0.1:80", token=token), serving, dict, bytes)
    made = Exchange(method, path, b"", headers)
    told = dict(headers)
    made.host, made.origin, made.site = b"localhost:80", told.get(b"origin"), told.get(SITE)
    made.authorization = told.get(b"authorization")
    refusal = app.admit(made)
    assert refusal is None or refusal.status == CODES[refusal.code].status
    return Asked(refusal.code if refusal is not None else "", made.cors, made.target)


@pytest.mark.parametrize("path", [b"/functions/open", b"/functions/plain", b"/page", b"/_skerry/status"])
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(SITE, b"same-origin")],
        [(SITE, b"none"), *LINK[1:]],
        [(b"origin", b"http://localhost:80")],
        # Behind a proxy the browser's URL is another one; the browser knows whether it is the page's.
        [(SITE, b"same-origin"), (b"origin", b"https://shop.example")],
    ],
)
def test_no_other_origin_has_asked(path: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    assert asked("GET", path, headers).code == ""


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", b"/functions/plain", FOREIGN, "cross_site_refused"),
        ("GET", b"/functions/plain", [(SITE, b"same-site")], "cross_site_refused"),
        ("GET", b"/functions/plain", [(SITE, b"of a later browser")], "cross_site_refused"),
        ("GET", b"/functions/plain", LINK, "cross_site_refused"),
        ("GET", b"/functions/open", FOREIGN, "cross_site_refused"),
        ("GET", b"/functions/every", FOREIGN, "cross_site_refused"),
        ("GET", b"/functions/nothing", FOREIGN, "cross_site_refused"),
        ("GET", b"/functions/page", LINK, ""),
        ("HEAD", b"/page", LINK, ""),
        ("POST", b"/functions/page", LINK, "cross_site_refused"),
        ("GET", b"/functions/page", [*LINK[:2], (b"sec-fetch-dest", b"iframe")], "cross_site_refused"),
        ("GET", b"/functions/page", FOREIGN, "cross_site_refused"),
        ("POST", b"/functions/open", A, ""),
        ("POST", b"/functions/open", A[1:], ""),
        ("POST", b"/functions/every", A, ""),
        ("DELETE", b"/functions/open", A, "origin_refused"),
        ("POST", b"/functions/plain", A, "origin_refused"),
        ("POST", b"/functions/page", A, "origin_refused"),
        ("POST", b"/functions/open", [(b"origin", b"http://b.example")], "origin_refused"),
        ("POST", b"/functions/plain", [(b"origin", b"http://localhost:81")], "origin_refused"),
        ("POST", b"/functions/plain", [(b"origin", b"http://localhost")], "origin_refused"),
        ("POST", b"/functions/plain", [(b"origin", b"https://localhost:80")], "origin_refused"),
        ("POST", b"/functions/plain", [(b"origin", b"null")], "origin_refused"),
        ("POST", b"/functions/plain", [(b"origin", b"")], "origin_refused"),
        ("GET", b"/_skerry/status", FOREIGN, "cross_site_refused"),
        ("GET", b"/_skerry/metrics", LINK, "cross_site_refused"),
        ("GET", b"/_skerry/metrics", A[1:], "cross_site_refused"),
        ("GET", b"/_skerry/healthz", FOREIGN, ""),
    ],
)
def test_a_page_of_another_origin_has_asked(
    method: str, path: bytes, headers: list[tuple[bytes, bytes]], code: str
) -> None:
    assert asked(method, path, headers).code == code


def test_a_token_changes_nothing_about_pages() -> None:
    """A proxy may add it to all that browsers send."""
    token = "t" * 20
    known = [(b"authorization", b"Bearer " + token.encode())]
    assert asked("GET", b"/functions/plain", known, token).code == ""
    assert asked("GET", b"/functions/plain", [*known, *FOREIGN], token).code == "cross_site_refused"
    assert asked("POST", b"/functions/open", [*known, *A], token).code == ""
    refused = asked("POST", b"/functions/open", A, token)
    assert (refused.code, b"allow-origin" in refused.cors) == ("token_needed", True)


def preflight(method: bytes) -> list[tuple[bytes, bytes]]:
    return [*A, (b"access-control-request-method", method), (b"access-control-request-headers", b"content-type")]


def test_a_preflight_is_answered_without_a_token_and_a_call() -> None:
    for path, method in ((b"/functions/open", b"GET"), (b"/functions/open", b"DELETE"), (b"/put", b"PUT")):
        made = asked("OPTIONS", path, preflight(method), "t" * 20)
        assert made.code == ""
        assert isinstance(made.target, bytes)
        assert b"access-control-allow-origin: http://a.example\r\n" in made.target
    for path in (b"/functions/plain", b"/functions/page", b"/functions/nothing", b"/nowhere"):
        assert asked("OPTIONS", path, preflight(b"GET"), "t" * 20).code == "origin_refused"
    # The method asked for counts, and the route takes no other.
    assert asked("OPTIONS", b"/put", preflight(b"GET")).code == "origin_refused"
    # An OPTIONS that is no preflight is a call, as any other.
    call = asked("OPTIONS", b"/functions/open", [(SITE, b"same-origin"), *A[1:]]).target
    assert isinstance(call, Match)
    assert call.function == "open"
    assert asked("OPTIONS", b"/functions/open", A).code == "origin_refused"


def test_answers_that_depend_on_the_origin_say_so() -> None:
    assert asked("GET", b"/functions/open", []).cors == b"vary: origin\r\n"
    assert asked("GET", b"/functions/every", []).cors == b"access-control-allow-origin: *\r\n"
    for path in (b"/functions/plain", b"/functions/page", b"/page"):
        assert asked("GET", path, []).cors == b""


def test_before_the_release_is_known_pages_of_other_origins_wait() -> None:
    assert asked("POST", b"/functions/open", A, release=None).code == "release_changing"
    assert asked("POST", b"/functions/open", [], release=None).code == ""
