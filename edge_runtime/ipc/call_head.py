"""The head of a call's frame: what a call is for, and how it came to the node."""

from typing import Final, NamedTuple

import msgspec
from msgspec import Struct


class Via(NamedTuple):
    """How a call came to the node."""

    scheme: str
    """http or https."""
    caller: str
    """Name of the caller in the node's file of callers; empty where the node has none."""
    auth_type: str
    """How the caller has shown who it is: Bearer (a token) or Certificate; empty where there is no caller."""


PLAIN: Final = Via("http", "", "")
SECURE: Final = Via("https", "", "")


class CallHead(Struct, frozen=True, array_like=True):
    """A call without its body: what it calls, and the request."""

    serial: int
    function: int
    """Index in the release's functions."""
    method: str
    path: str
    """The path behind the function's name, percent-encoded: empty, or beginning with a slash."""
    query: bytes
    """The query as it came, without the question mark."""
    headers: list[tuple[bytes, bytes]]
    """The headers in their order, names in lower case."""
    client: str
    """The client's address."""
    script: str = ""
    """The path before `path`: /functions/NAME, or a route's path up to its first parameter."""
    route: str = ""
    """The manifest's route that the call came by; empty if it came by none."""
    params: list[tuple[str, str]] = []
    """Names and values of the route's parameters, percent-decoded, as latin-1."""
    via: Via = PLAIN


encode_head: Final = msgspec.msgpack.Encoder().encode
decode_call: Final = msgspec.msgpack.Decoder(CallHead).decode
