"""What the CLI makes of grants: a route's text, and a release's changes for a person's eyes."""

import click
import pytest

from control.cli.functions import check_manifest, read_route
from control.cli.support.releasing import changes


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("/orders/{id}", {"path": "/orders/{id}"}),
        ("GET /orders", {"path": "/orders", "methods": ["GET"]}),
        ("get|Put /orders", {"path": "/orders", "methods": ["GET", "PUT"]}),
        ("GET, PUT /orders", {"path": "/orders", "methods": ["GET", "PUT"]}),
        ("GET shop.example/a", {"path": "/a", "methods": ["GET"], "hosts": ["shop.example"]}),
        ("shop.example,*.shop.example/", {"path": "/", "hosts": ["shop.example", "*.shop.example"]}),
        ("GET orders", {"path": "orders", "methods": ["GET"]}),
    ],
)
def test_a_route_is_read(text: str, route: dict[str, object]) -> None:
    assert read_route(text) == route


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ({"route": {"path": "orders"}}, "a path as /orders/{id} or /files/{rest...} - at `$.route.path`"),
        ({"route": {"path": "/", "methods": ["get"]}}, "a method, in upper case - at `$.route.methods[0]`"),
        ({"route": {"path": "/", "hosts": ["A.example"]}}, "a host's name in lower case, without a port"),
        ({"http": {"hosts": ["https://a.example/x"]}}, "a host alone, as api.example"),
        ({"secrets": ["1"]}, "a name of letters, digits"),
        ({"config": {"a b": "c"}}, "a name of letters, digits"),
        ({"route": {"path": "/_skerry"}}, "the node's own"),
        ({"time_limit_ms": 1}, ">= 10 - at `$.time_limit_ms`"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said_without_a_pattern(manifest: dict[str, object], told: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        check_manifest(manifest)
    assert told in refused.value.message
    assert "regex" not in refused.value.message


def test_what_a_new_version_wants_more_is_shown() -> None:
    grants = [
        {"name": "f", "grant": "sql", "from": "read", "to": "write"},
        {"name": "f", "grant": "http", "from": None, "to": {"hosts": ["a.example"]}},
        {"name": "f", "grant": "secrets", "from": ["A", "B"], "to": None},
        {"name": "f", "grant": "schedule", "from": ["0 3 * * *"], "to": ["0 3 1,15 * *", "5 * * * *"]},
        {"name": "f", "grant": "timezone", "from": None, "to": "Europe/Berlin"},
        {"name": "f", "grant": "on_release", "from": None, "to": True},
        {"name": "f", "grant": "route", "from": {"path": "/a"}, "to": {"path": "/b", "methods": ["GET"]}},
    ]
    assert [line for line, _ in changes({"grants": grants})] == [
        "! f sql: write (was: read)",
        "! f http: GET|HEAD to a.example (5000 ms, 1048576 bytes out, 1048576 in)",
        "! f secrets: none (was: A, B)",
        "! f schedule: 0 3 1,15 * *; 5 * * * * (was: 0 3 * * *)",
        "! f timezone: Europe/Berlin",
        "! f on_release: after each release with another version",
        "! f route: GET /b (was: ANY /a)",
    ]
