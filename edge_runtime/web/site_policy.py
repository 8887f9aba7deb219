"""Which requests from web pages of other origins are accepted, and what the browser is told. Pure.

A user's browser can reach this node, and any page that the user opens can have the browser send requests here: an
image, a link, a form, `fetch`. The browser marks such requests with headers that no page can set: `Sec-Fetch-Site`, how
the page relates to the URL; and `Origin`, the page's origin, with CORS and with methods other than GET and HEAD.
Programs other than browsers send neither, and this module doesn't concern them.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from control.protocol.manifest import Manifest

UNASKED: Final = (b"same-origin", b"none")
"""Values of Sec-Fetch-Site for requests that no other origin caused; `none`: a person did, in the address bar."""
_READING: Final = ("GET", "HEAD")
_SHOWN: Final = 100
"""Bytes of a header that are shown in a message."""
_FOR_EVERY: Final = b"access-control-allow-origin: *\r\n"
_VARY: Final = b"vary: origin\r\n"
_VARY_PREFLIGHT: Final = b"vary: origin, access-control-request-method, access-control-request-headers\r\n"
_OURS: Final = (b"access-control-allow-origin:", b"access-control-allow-credentials:")
"""Lines of a function's answer that the node writes instead, if the manifest says who may read it."""


class Denied(NamedTuple):
    """Why a request is refused: the code of the refusal, and its text."""

    code: str
    message: str


class PageRequest(NamedTuple):
    """What a browser says about a request."""

    method: str
    """The request's method, or the one that a preflight asks for."""
    origin: bytes | None
    preflight: bool = False
    """The browser asks before it sends the actual request."""
    mode: bytes = b""
    """Sec-Fetch-Mode."""
    destination: bytes = b""
    """Sec-Fetch-Dest."""


class PageRule:
    """What a function's manifest lets pages of other origins do."""

    __slots__ = ("_cors", "_every", "_origins", "_preflight", "always", "navigation")

    def __init__(self, manifest: Manifest) -> None:
        cors = manifest.cors
        self.navigation = manifest.navigation
        self._cors = cors
        self._origins = frozenset(origin.encode() for origin in cors.origins) if cors is not None else frozenset()
        self._every = b"*" in self._origins
        self.always = b"" if cors is None else _FOR_EVERY if self._every else _VARY
        """Lines of an answer that isn't for a page of another origin: a cache may later serve it to such a page."""
        self._preflight = b""
        if cors is not None:
            self._preflight = b"access-control-allow-methods: %b\r\n" % ", ".join(cors.methods).encode()
            if cors.headers:
                self._preflight += b"access-control-allow-headers: %b\r\n" % ", ".join(cors.headers).encode()
            self._preflight += b"access-control-max-age: %d\r\n" % cors.max_age

    def shares(self, origin: bytes) -> bool:
        """Return whether pages of an origin may call the function, with the manifest's methods, and read the
        answers."""
        return self._every or origin in self._origins

    def takes(self, method: str) -> bool:
        return self._cors is not None and method in self._cors.methods

    def lines(self, origin: bytes) -> bytes:
        """Return the lines by which the browser lets a page of this origin, one that `shares`, read an answer."""
        if self._every:
            return _FOR_EVERY
        credentials = b"access-control-allow-credentials: true\r\n" if self._cors and self._cors.credentials else b""
        return b"access-control-allow-origin: %b\r\n%b%b" % (origin, credentials, _VARY)

    def preflight(self, origin: bytes) -> bytes:
        """Return the header lines of the answer to a preflight from this origin, one that `shares`."""
        lines = self.lines(origin)
        return lines.removesuffix(_VARY) + self._preflight + (b"" if self._every else _VARY_PREFLIGHT)


def rules(manifests: Mapping[str, Manifest]) -> dict[str, PageRule]:
    """Return, by name, the rules of functions whose manifests allow pages of other origins anything."""
    return {name: PageRule(m) for name, m in manifests.items() if m.cors is not None or m.navigation}


def foreign(site: bytes | None, origin: bytes | None, own: bytes) -> bool:
    """Return whether a page of another origin had a browser send the request; `own` is the node's origin.

    `site`, Sec-Fetch-Site, comes first: it is about the URL that the browser has, which a proxy may have rewritten.
    Browsers from before 2023 don't send it, and none does over plain http except to a loopback address.
    """
    if site is not None:
        return site not in UNASKED
    return origin is not None and origin != own


def denied(asked: PageRequest, rule: PageRule | None, own: bytes) -> Denied | None:
    """Return why a request from another origin is refused; None if the function's rule allows it. `own` is the node's
    origin."""
    origin = asked.origin
    if origin is not None:
        if rule is not None and rule.shares(origin):
            # A preflight's answer lists the methods, which lets the browser report what is wrong.
            allowed = asked.preflight or rule.takes(asked.method)
            return None if allowed else Denied("origin_refused", _wrong_method(asked.method, origin))
        return Denied("origin_refused", _wrong_origin(origin, own))
    opens = asked.mode == b"navigate" and asked.destination == b"document" and asked.method in _READING
    if opens and rule is not None and rule.navigation:
        return None
    return Denied("cross_site_refused", _NO_LINK if opens else _NO_ORIGIN)


def merged(head: bytes, lines: bytes) -> bytes:
    """Return an answer's header lines together with `lines` of a rule, which override the function's own."""
    if lines.startswith(_OURS) and b"access-control-allow-" in (lower := head.lower()):
        kept, at = [], 0
        for line in lower.splitlines(keepends=True):
            if not line.startswith(_OURS):
                kept.append(head[at : at + len(line)])
            at += len(line)
        head = b"".join(kept)
    return head + lines


_NO_LINK: Final = (
    "A page of another origin links here, and the function isn't to be opened so: `navigation = true` in its manifest "
    "allows links. Typed into the browser's address bar, the address works."
)
_NO_ORIGIN: Final = (
    "A web page of another origin had a browser ask, without saying which origin it is. Pages may call a function by "
    "CORS (`fetch` in the mode `cors`), where its manifest names their origin in `cors.origins`."
)
OWN_PAGES: Final = Denied(
    "cross_site_refused",
    "A web page of another origin had a browser ask. The node's own pages are for none: type the address into the "
    "browser's address bar, or have a program read it.",
)
"""The refusal of every request from another origin for the node's own pages."""


def _wrong_origin(origin: bytes, own: bytes) -> str:
    return (
        f"A web page of {_shown(origin)} asks, and this node's own pages are those of {_shown(own)}: name the page's "
        f"origin in `cors.origins` of the function's manifest, if it may call the function."
    )


def _wrong_method(method: str, origin: bytes) -> str:
    return (
        f"A web page of {_shown(origin)} asks with {method[:_SHOWN]}, and `cors.methods` of the function's manifest, "
        f"which names that origin, hasn't this method."
    )


def _shown(value: bytes) -> str:
    return value[:_SHOWN].decode("latin-1")
