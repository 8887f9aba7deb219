"""Who may call a node that has no token: the Host header and a web page's Origin, by where the node listens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_runtime.dispatch.queues import Hold
from edge_runtime.settings import EdgeSettings
from edge_runtime.web.app import EdgeApp
from edge_runtime.web.parser import Exchange

POOL: Any = SimpleNamespace(release=None, hold=Hold.NOTHING, submit=None)


def admitted(listen: str, host: bytes | None, origin: bytes | None = None, hosts: tuple[str, ...] = ()) -> str:
    """The code of the refusal, or none."""
    app = EdgeApp(EdgeSettings(Path("state"), listen=listen, hosts=hosts), POOL, dict, bytes)
    asked = Exchange("POST", b"/functions/f", b"", [])
    asked.host, asked.origin = host, origin
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


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        (None, ""),
        (b"http://localhost:3000", ""),
        (b"https://APP.example", ""),
        (b"https://app.example.evil", "origin_refused"),
        (b"https://evil.example", "origin_refused"),
        (b"null", "origin_refused"),
        (b"", "origin_refused"),
    ],
)
def test_a_page_must_be_of_a_host_of_its_own(origin: bytes | None, code: str) -> None:
    assert admitted("127.0.0.1:80", b"localhost", origin, ("app.Example",)) == code
