"""Which function a path that isn't below /functions is for: the routes of the release's manifests. Pure.

Segments are compared decoded; a literal wins over a parameter, a parameter over the rest of the path, at the first
segment where two routes differ. Only routes that take the method count; HEAD falls to GET.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from control import wire

_NO_METHOD: Final = ""
"""Key of the function that takes every method."""


class Match(NamedTuple):
    function: str
    route: str
    """The path of the manifest's route."""
    script: str
    """The request's path up to the first parameter, as the route has it: no slash at its end."""
    path: str
    """The rest, as it came; empty, or from a slash on."""
    params: list[tuple[str, str]]
    """Decoded, as latin-1."""


class _Leaf(Struct):
    function: str
    route: str
    params: list[tuple[str, int]]
    """Name and index of the segment."""
    rest: bool
    """The last parameter is the rest of the path."""


class _Node(Struct):
    literals: "dict[bytes, _Node]"
    parameter: "_Node | None"
    here: dict[str, _Leaf]
    """By method: of routes that end here."""
    rest: dict[str, _Leaf]
    """Of routes whose rest begins here."""


class Table:
    """The routes of a release; it is made once for each."""

    def __init__(self, routes: Mapping[str, wire.Route]) -> None:
        """By function. No two of one shape have a common method: control has seen to it."""
        self._root = _node()
        for function, route in routes.items():
            self._add(function, route)

    def _add(self, function: str, route: wire.Route) -> None:
        node, params, rest = self._root, [], False
        for index, segment in enumerate(route.path.split("/")[1:]):
            if not segment.startswith("{"):
                node = node.literals.setdefault(segment.encode(), _node())
                continue
            params.append((segment.strip("{}."), index))
            if segment.endswith("...}"):
                rest = True
            else:
                node.parameter = node.parameter or _node()
                node = node.parameter
        leaf = _Leaf(function, route.path, params, rest)
        for method in route.methods or (_NO_METHOD,):
            (node.rest if rest else node.here)[method] = leaf

    def match(self, method: str, path: str) -> Match | list[str]:
        """The function for a path as it came (from its slash on, percent-encoded); where none takes the method, the
        methods that there are, and no method where no route has the path."""
        segments = path.split("/")[1:]
        decoded = [unquote_to_bytes(s) if "%" in s else s.encode("latin-1") for s in segments]
        allowed: set[str] = set()
        for leaves in _found(self._root, decoded, 0):
            leaf = leaves.get(method) or leaves.get(_NO_METHOD) or (leaves.get("GET") if method == "HEAD" else None)
            if leaf is not None:
                return _matched(leaf, segments, decoded)
            allowed |= leaves.keys()
        if "GET" in allowed:
            allowed.add("HEAD")
        return sorted(allowed)


def _node() -> _Node:
    return _Node({}, None, {}, {})


def _found(node: _Node, segments: list[bytes], at: int) -> Iterator[dict[str, _Leaf]]:
    """The places of routes that have this path, the best first."""
    if at == len(segments):
        if node.here:
            yield node.here
        return
    segment = segments[at]
    literal = node.literals.get(segment)
    if literal is not None:
        yield from _found(literal, segments, at + 1)
    # An empty segment is no value: /orders/ isn't an order.
    if node.parameter is not None and segment:
        yield from _found(node.parameter, segments, at + 1)
    if node.rest:
        yield node.rest


def _matched(leaf: _Leaf, segments: list[str], decoded: list[bytes]) -> Match:
    params = [(name, decoded[at].decode("latin-1")) for name, at in leaf.params]
    if leaf.rest:
        name, at = leaf.params[-1]
        params[-1] = (name, b"/".join(decoded[at:]).decode("latin-1"))
    if not leaf.params:
        script = leaf.route.removesuffix("/")
        return Match(leaf.function, leaf.route, script, leaf.route[len(script) :], params)
    script = leaf.route[: leaf.route.index("/{")]
    return Match(leaf.function, leaf.route, script, "/" + "/".join(segments[leaf.params[0][1] :]), params)
