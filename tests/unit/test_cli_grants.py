"""What the CLI makes of grants: a route's text, and a release's changes for a person's eyes."""

import pytest

from control.cli.function import read_route
from control.cli.releasing import changes


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("/orders/{id}", {"path": "/orders/{id}"}),
        ("GET /orders", {"path": "/orders", "methods": ["GET"]}),
        ("get|Put /orders", {"path": "/orders", "methods": ["GET", "PUT"]}),
        ("GET, PUT /orders", {"path": "/orders", "methods": ["GET", "PUT"]}),
    ],
)
def test_a_route_is_read(text: str, route: dict[str, object]) -> None:
    assert read_route(text) == route


def test_what_a_new_version_wants_more_is_shown() -> None:
    grants = [
        {"name": "f", "grant": "sql", "from": "read", "to": "write"},
        {"name": "f", "grant": "http", "from": None, "to": {"hosts": ["a.example"]}},
        {"name": "f", "grant": "secrets", "from": ["A", "B"], "to": None},
        {"name": "f", "grant": "route", "from": {"path": "/a"}, "to": {"path": "/b", "methods": ["GET"]}},
    ]
    assert [line for line, _ in changes({"grants": grants})] == [
        "! f sql: write (was: read)",
        "! f http: GET|HEAD to a.example (5000 ms, 1048576 bytes out, 1048576 in)",
        "! f secrets: none (was: A, B)",
        "! f route: GET /b (was: ANY /a)",
    ]
