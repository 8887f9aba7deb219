"""The matcher of routes, against a model that tries every route, and control's rule of conflicts against both."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import manifests
from control.manifest_fields import Route
from edge_runtime.web.routes import Match, Table

LITERALS = ["a", "b", ""]
METHODS = ["GET", "HEAD", "POST"]


def kinds(route: Route) -> tuple[int, ...]:
    return tuple(
        (2 if segment.endswith("...}") else 1) if segment.startswith("{") else 0
        for segment in route.path.split("/")[1:]
    )


def has(route: Route, segments: list[str]) -> bool:
    """Whether the path is one of the route's, by its definition."""
    pattern = route.path.split("/")[1:]
    for at, part in enumerate(pattern):
        if part.endswith("...}"):
            return len(segments) > at
        if at >= len(segments) or (not segments[at] if part.startswith("{") else part != segments[at]):
            return False
    return len(pattern) == len(segments)


def expected(routes: dict[str, Route], method: str, segments: list[str]) -> str | list[str]:
    found = sorted((kinds(route), name) for name, route in routes.items() if has(route, segments))
    for _, group in itertools.groupby(found, key=lambda item: item[0]):
        names = [name for _, name in group]
        for wanted in [method, "GET"] if method == "HEAD" else [method]:
            for name in names:
                if wanted in routes[name].methods or not routes[name].methods:
                    return name
    allowed = {m for _, name in found for m in routes[name].methods}
    return sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))


@st.composite
def some_route(draw: st.DrawFn) -> Route:
    parts = draw(st.lists(st.sampled_from(["a", "b", "{}"]), max_size=3))
    end = draw(st.sampled_from(["", "a", "{}", "{...}"]))
    if parts and end == "" and draw(st.booleans()):
        parts, end = parts[:-1], parts[-1]
    named = [f"{part[0]}p{at}{part[1:]}" if part[:1] == "{" else part for at, part in enumerate([*parts, end])]
    return Route("/" + "/".join(named), draw(st.lists(st.sampled_from(METHODS), max_size=2, unique=True)))


PATHS = [list(path) for length in (1, 2, 3, 4) for path in itertools.product(["a", "b", "c", ""], repeat=length)]


@given(st.lists(some_route(), max_size=6))
def test_the_matcher_finds_what_the_definition_says(listed):
    routes: dict[str, Route] = {}
    for number, route in enumerate(listed):
        if not manifests.conflict({**routes, f"f{number}": route}):
            routes[f"f{number}"] = route
    table = Table(routes)
    for segments in PATHS:
        for method in METHODS:
            found = table.match(method, "/" + "/".join(segments))
            wanted = expected(routes, method, segments)
            assert (found.function if isinstance(found, Match) else found) == wanted, (routes, segments, method)
            if isinstance(found, Match):
                assert found.script + found.path == "/" + "/".join(segments)
                assert found.script == "" or not found.script.endswith("/")


@given(some_route(), some_route())
def test_two_routes_conflict_exactly_where_some_request_is_both_ones_equally(one, other):
    tie = any(has(one, segments) and has(other, segments) and kinds(one) == kinds(other) for segments in PATHS) and any(
        (not one.methods or method in one.methods) and (not other.methods or method in other.methods)
        for method in [*METHODS, "PUT"]
    )
    assert bool(manifests.conflict({"one": one, "other": other})) == tie


@pytest.mark.parametrize(
    ("route", "path", "script", "rest", "params"),
    [
        ("/", "/", "", "/", []),
        ("/health", "/health", "/health", "", []),
        ("/health", "/%68ealth", "/health", "", []),
        ("/a/", "/a/", "/a", "/", []),
        ("/orders/{id}", "/orders/7", "/orders", "/7", [("id", "7")]),
        ("/orders/{id}", "/orders/a%2Fb%20c", "/orders", "/a%2Fb%20c", [("id", "a/b c")]),
        ("/orders/{id}/lines/{line}", "/orders/7/lines/%31", "/orders", "/7/lines/%31", [("id", "7"), ("line", "1")]),
        ("/{all...}", "/", "", "/", [("all", "")]),
        ("/{all...}", "/a/b%2e/", "", "/a/b%2e/", [("all", "a/b./")]),
        ("/f/{id}/{rest...}", "/f/%C3%A5/x/y", "/f", "/%C3%A5/x/y", [("id", "Ã¥"), ("rest", "x/y")]),
    ],
)
def test_a_match_says_script_path_and_parameters(route, path, script, rest, params):
    assert Table({"f": Route(route)}).match("GET", path) == Match("f", route, script, rest, params)


def test_no_route_and_no_method_are_told_apart():
    table = Table({"f": Route("/a", ["GET"]), "g": Route("/a", ["DELETE"])})
    assert table.match("GET", "/b") == []
    assert table.match("PUT", "/a") == ["DELETE", "GET", "HEAD"]
    assert table.match("HEAD", "/a") == Match("f", "/a", "/a", "", [])
    assert table.match("DELETE", "/a") == Match("g", "/a", "/a", "", [])
