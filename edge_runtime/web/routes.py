"""Finds the function for a path that isn't below /functions, using the routes of the release's manifests. Pure.

Segments are compared decoded. At the first segment where two routes differ, a literal wins over a parameter, and a
parameter over the rest of the path. Only routes that take the method count; HEAD is served by a route for GET.

The host decides before the path: a route for exactly the request's host wins over one for a wildcard host, the closest
wildcard first, and that over one for every host.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from control.protocol.manifest import Route

_NO_METHOD: Final = ""
"""Key of the function that accepts every method."""
_HOST_LENGTH: Final = 253
"""Characters of the longest host that a route can have."""


class Match(NamedTuple):
    """A function for a path, and how the path is split."""

    function: str
    route: str
    """The path of the manifest's route."""
    script: str
    """The request's path up to the first parameter, as the route has it: no slash at the end."""
    path: str
    """The rest of the path as received: empty, or beginning with a slash."""
    params: list[tuple[str, str]]
    """The parameters' names and values; a value's bytes, percent-decoded, are in the string as latin-1."""
    host: str = ""
    """The route's host that the request matched, as written in the manifest; empty if the route is for every host."""


class _Leaf(Struct):
    function: str
    route: str
    params: list[tuple[str, int]]
    """Name of each parameter, and index of its segment."""
    rest: bool
    """The last parameter is the rest of the path."""
    host: str


class _Node(Struct):
    literals: "dict[bytes, _Node]"
    parameter: "_Node | None"
    here: dict[str, _Leaf]
    """The routes that end here, by method."""
    rest: dict[str, _Leaf]
    """The routes whose parameter for the rest of the path begins here, by method."""


class Table:
    """The routes of one release."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        """`routes` are by function. No two of one host and shape share a method: control ensures that."""
        self._root = _node()
        """The routes that are for every host."""
        self._hosts: dict[bytes, _Node] = {}
        """The routes for certain hosts, by host as written in the manifest."""
        for function, route in routes.items():
            for host in route.hosts:
                _add(self._hosts.setdefault(host.encode(), _node()), function, route, host)
            if not route.hosts:
                _add(self._root, function, route, "")

    @property
    def by_host(self) -> bool:
        """Whether there are routes for certain hosts."""
        return bool(self._hosts)

    def names(self, host: bytes) -> bool:
        """Return whether some route is for this host (from a Host header), not just for every host."""
        return self.by_host and any(True for _ in self._of(host))

    def match(self, method: str, path: str, host: bytes = b"") -> Match | list[str]:
        """Return the function for a path as received (from its first slash on, percent-encoded) and a Host header.

        If no route accepts the method, return the methods that the path's routes accept: none if no route has the path.
        """
        segments = path.split("/")[1:]
        decoded = [unquote_to_bytes(s) if "%" in s else s.encode("latin-1") for s in segments]
        allowed: set[str] = set()
        for root in (*self._of(host), self._root) if self._hosts else (self._root,):
            for leaves in _found(root, decoded, 0):
                leaf = leaves.get(method) or leaves.get(_NO_METHOD) or (leaves.get("GET") if method == "HEAD" else None)
                if leaf is not None:
                    return _matched(leaf, segments, decoded)
                allowed |= leaves.keys()
        if "GET" in allowed:
            allowed.add("HEAD")
        return sorted(allowed)

    def _of(self, host: bytes) -> Iterator[_Node]:
        """Yield the host-specific routes for this host, the closest match first."""
        name = host.lower().partition(b":")[0].removesuffix(b".")
        if len(name) > _HOST_LENGTH:
            return
        if name in self._hosts:
            yield self._hosts[name]
        at = name.find(b".", 1)
        while at > 0:
            found = self._hosts.get(b"*" + name[at:])
            if found is not None:
                yield found
            at = name.find(b".", at + 1)


def _add(node: _Node, function: str, route: Route, host: str) -> None:
    params, rest = [], False
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
    leaf = _Leaf(function, route.path, params, rest, host)
    for method in route.methods or (_NO_METHOD,):
        (node.rest if rest else node.here)[method] = leaf


def _node() -> _Node:
    return _Node({}, None, {}, {})


def _found(node: _Node, segments: list[bytes], at: int) -> Iterator[dict[str, _Leaf]]:
    """Yield the routes that have this path, by method, the best match first."""
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
        return Match(leaf.function, leaf.route, script, leaf.route[len(script) :], params, leaf.host)
    script = leaf.route[: leaf.route.index("/{")]
    return Match(leaf.function, leaf.route, script, "/" + "/".join(segments[leaf.params[0][1] :]), params, leaf.host)
