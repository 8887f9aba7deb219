"""The matcher of routes, against a model that tries every route, and control's rule of conflicts against both."""

import itertools
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import manifest_rules
from control.protocol.manifest import Route
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


def nearness(route: Route, host: str) -> int | None:
    """How near the route's hosts are to this one, 0 the nearest; None where it isn't for this host."""
    if not route.hosts:
        return 99
    labels = re.sub(r":\d*$", "", host).lower().removesuffix(".").split(".")
    named = [("*." if at else "") + ".".join(labels[at:]) for at in range(len(labels) if labels[0] else 1)]
    return min((at for at, name in enumerate(named) if name in route.hosts), default=None)


def expected(routes: dict[str, Route], method: str, segments: list[str], host: str = "") -> str | list[str]:
    found = sorted(
        ((near, *kinds(route)), name)
        for name, route in routes.items()
        if has(route, segments) and (near := nearness(route, host)) is not None
    )
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


NAMED = ["a.example", "b.a.example", "*.a.example", "*.b.a.example", "10.0.0.1"]
HOSTS = [
    "", "localhost", "a.example", "A.Example:8080", "a.example.", "a.example.:80", "b.a.example", "c.b.a.example:443",
    "c.c.a.example", "xa.example", "example", "10.0.0.1:80", "[::1]:80", "a.example..", ".a.example", "*.a.example",
]  # fmt: skip


@st.composite
def some_route_for_hosts(draw: st.DrawFn) -> Route:
    hosts = draw(st.lists(st.sampled_from(NAMED), max_size=2, unique=True))
    return msgspec.structs.replace(draw(some_route()), hosts=hosts)


PATHS = [list(path) for length in (1, 2, 3, 4) for path in itertools.product(["a", "b", "c", ""], repeat=length)]


def without_conflicts(listed: list[Route]) -> dict[str, Route]:
    """The routes by functions, without those that conflict with one before them."""
    routes: dict[str, Route] = {}
    for number, route in enumerate(listed):
        if not manifest_rules.conflict({**routes, f"f{number}": route}):
            routes[f"f{number}"] = route
    return routes


@given(st.lists(some_route(), max_size=6))
def test_the_matcher_finds_what_the_definition_says(listed):
    routes = without_conflicts(listed)
    table = Table(routes)
    for segments in PATHS:
        for method in METHODS:
            found = table.match(method, "/" + "/".join(segments))
            wanted = expected(routes, method, segments)
            assert (found.function if isinstance(found, Match) else found) == wanted, (routes, segments, method)
            if isinstance(found, Match):
                assert found.script + found.path == "/" + "/".join(segments)
                assert found.script == "" or not found.script.endswith("/")


@given(st.lists(some_route_for_hosts(), max_size=6))
def test_the_nearest_host_decides_before_the_path(listed):
    routes = without_conflicts(listed)
    table = Table(routes)
    for host in HOSTS:
        assert table.names(host.encode()) == any(r.hosts and nearness(r, host) is not None for r in routes.values())
        for segments in PATHS[:20]:
            for method in METHODS:
                found = table.match(method, "/" + "/".join(segments), host.encode())
                wanted = expected(routes, method, segments, host)
                assert (found.function if isinstance(found, Match) else found) == wanted, (routes, segments, host)
                if isinstance(found, Match):
                    assert (found.host in routes[found.function].hosts) if found.host else not routes[wanted].hosts


@given(some_route_for_hosts(), some_route_for_hosts())
def test_routes_for_hosts_conflict_exactly_where_they_are_as_near(one, other):
    hosts = [*NAMED, "x.a.example", "x.b.a.example", ""]
    tie = bool(
        manifest_rules.conflict({"one": Route(one.path, one.methods), "other": Route(other.path, other.methods)})
    )
    nears = [(nearness(one, host), nearness(other, host)) for host in hosts if not host.startswith("*")]
    as_near = any(a is not None and a == b for a, b in nears)
    assert bool(manifest_rules.conflict({"one": one, "other": other})) == (tie and as_near)


@given(some_route(), some_route())
def test_two_routes_conflict_exactly_where_some_request_is_both_ones_equally(one, other):
    tie = any(has(one, segments) and has(other, segments) and kinds(one) == kinds(other) for segments in PATHS) and any(
        (not one.methods or method in one.methods) and (not other.methods or method in other.methods)
        for method in [*METHODS, "PUT"]
    )
    assert bool(manifest_rules.conflict({"one": one, "other": other})) == tie


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


def test_a_match_says_the_host_of_the_route_and_a_route_without_hosts_is_for_every_one():
    table = Table({"f": Route("/a", hosts=["shop.example", "*.shop.example"]), "g": Route("/a"), "h": Route("/b")})
    assert table.match("GET", "/a", b"Shop.Example:8080") == Match("f", "/a", "/a", "", [], "shop.example")
    assert table.match("GET", "/a", b"x.y.shop.example") == Match("f", "/a", "/a", "", [], "*.shop.example")
    assert table.match("GET", "/a", b"other.example") == Match("g", "/a", "/a", "", [])
    assert table.match("GET", "/b", b"shop.example") == Match("h", "/b", "/b", "", [])
    assert table.match("GET", "/c", b"shop.example") == []


def test_the_methods_that_are_told_are_those_of_the_host():
    table = Table({"f": Route("/a", ["PUT"], ["shop.example"]), "g": Route("/a", ["POST"], ["other.example"])})
    assert table.match("GET", "/a", b"shop.example") == ["PUT"]
    assert table.match("GET", "/a", b"localhost") == []


def test_a_host_that_is_too_long_for_any_route_costs_no_look_up():
    table = Table({"f": Route("/a", hosts=["*.shop.example"])})
    assert table.match("GET", "/a", b"a." * 200 + b"shop.example") == []
