"""The head of a call's frame: the call's target, how it came to the node, and its request, in the layout that it has in
the memory of a guest of the ABI `direct`, so that a worker copies it there without parsing it. Pure.

Numbers are little-endian. A head has twelve bytes: the front's serial of the set of modules (u32), the function's index
in the release (u16), the scheme (u8: 0 http, 1 https), the sizes of `auth_type` (u8) and `caller` (u16), and 0 (u16).
Then come `caller` in UTF-8, `auth_type`, and the block.

A block has eight lengths (u32), then as many texts in the order of `TEXTS`, each followed by a NUL that its length
doesn't count. A text's bytes are as received from the network. The request's body isn't in the head but after it.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from msgspec import Struct

TEXTS: Final = ("method", "path", "query", "headers", "script", "route", "params", "client")
"""`headers` are lines, each `name: value` and LF; `params` are written like a query string. The others are as in
`RequestTexts`."""

UNSENDABLE: Final = "it has characters that no request can have"
"""The message for a request with text that isn't one byte per character."""

_START: Final = struct.Struct("<IHBBHH")
_TARGET: Final = struct.Struct("<IH")
"""The beginning of `_START`: the serial, and the function's index."""
_LENGTHS: Final = struct.Struct(f"<{len(TEXTS)}I")
BLOCK: Final = _START.size
"""Where the block begins in the head of a call that has no caller."""
_FIRST_TEXT: Final = _LENGTHS.size
_pack_start, _pack_lengths = _START.pack, _LENGTHS.pack


class RequestUnfit(ValueError):
    """The request can't be passed to any function, or to none of its ABI; the message says why."""


class Via(NamedTuple):
    """How a call came to the node."""

    scheme: str
    """http or https."""
    caller: str
    """Name of the caller in the node's file of callers; empty if the node has none."""
    auth_type: str
    """How the caller was authenticated: Bearer (a token) or Certificate; empty if there is no caller."""


PLAIN: Final = Via("http", "", "")
SECURE: Final = Via("https", "", "")


class CallHead(Struct, frozen=True):
    """A call without its body: its target, and the request."""

    serial: int
    function: int
    """Index in the release's functions."""
    via: Via
    method: str
    block: bytes
    """The request, which `decode_block` turns into texts."""


class RequestTexts(Struct, frozen=True):
    """The contents of a block. Each code point below 256 stands for one byte."""

    method: str
    path: str
    """The path after `script`, percent-encoded: empty, or beginning with a slash."""
    query: str
    """The query as received, without the question mark."""
    headers: list[tuple[str, str]]
    """The headers in their order, names in lower case."""
    script: str
    """The path before `path`: /functions/NAME, or a route's path up to its first parameter."""
    route: str
    """The manifest's route that the call came by; empty if it came by none."""
    params: list[tuple[str, str]]
    """Names and values of the route's parameters, percent-decoded."""
    client: str
    """The client's address."""


def encode_head(
    serial: int,
    function: int,
    via: Via,
    method: str,
    path: str,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    script: str,
    route: str,
    params: Sequence[tuple[str, str]],
    client: str,
) -> bytes:
    """Return a call's head. Without `caller` and `auth_type` its block begins at `BLOCK`.

    Raises: RequestUnfit, when no head can express the request.
    """
    scheme, caller, auth_type = via
    if caller or auth_type:
        who, how = caller.encode(), auth_type.encode()
        start = _pack_start(serial, function, scheme == "https", len(how), len(who), 0) + who + how
    else:
        start = _pack_start(serial, function, scheme == "https", 0, 0, 0)
    pieces = [b": ".join(header) for header in headers]
    pieces.append(b"")
    lines = b"\n".join(pieces)
    if lines.count(b"\n") != len(headers):
        raise RequestUnfit("a header has a line break")
    try:
        quoted = (
            "&".join([f"{name}={quote_from_bytes(value.encode('latin-1'), '')}" for name, value in params])
            if params
            else ""
        )
        first = f"{method}\0{path}\0".encode("latin-1")
        last = f"\0{script}\0{route}\0{quoted}\0{client}\0".encode("latin-1")
    except UnicodeEncodeError:
        raise RequestUnfit(UNSENDABLE) from None
    lengths = _pack_lengths(
        len(method), len(path), len(query), len(lines), len(script), len(route), len(quoted), len(client)
    )
    return b"".join((start, lengths, first, query, b"\0", lines, last))


def target(head: bytes) -> tuple[int, int] | None:
    """Return the serial and the function's index of a head, without reading the rest; None if it is too short."""
    if len(head) < _TARGET.size:
        return None
    serial, function = _TARGET.unpack_from(head)
    return serial, function


def decode_head(head: bytes) -> CallHead:
    """Decode a head. Raises: ValueError, when its lengths don't add up to its own."""
    try:
        serial, function, secure, auth_type_size, caller_size, zero = _START.unpack_from(head)
        middle = BLOCK + caller_size
        at = middle + auth_type_size
        lengths = _LENGTHS.unpack_from(head, at)
    except struct.error as error:
        raise ValueError(f"a call's head of {len(head)} bytes ends too early: {error}") from None
    end = at + _FIRST_TEXT + sum(lengths) + len(TEXTS)
    if end != len(head) or secure > 1 or zero:
        raise ValueError(f"a call's head of {len(head)} bytes says that it has {end}, and of its scheme {secure}")
    via = SECURE if secure else PLAIN
    if caller_size or auth_type_size:
        via = Via(via.scheme, head[BLOCK:middle].decode(), head[middle:at].decode())
    first = at + _FIRST_TEXT
    return CallHead(serial, function, via, head[first : first + lengths[0]].decode("latin-1"), head[at:])


def decode_block(block: bytes) -> RequestTexts:
    """Decode a head's block. Raises: ValueError, when a header or a parameter has no value."""
    text, at, texts = block.decode("latin-1"), _FIRST_TEXT, []
    for length in _LENGTHS.unpack_from(block):
        end = at + length
        texts.append(text[at:end])
        at = end + 1
    method, path, query, lines, script, route, quoted, client = texts
    headers = []
    for line in lines.split("\n"):
        name, found, value = line.partition(": ")
        if found:
            headers.append((name, value))
    if len(headers) != lines.count("\n"):
        raise ValueError("a call's head has a header line without a value or an end")
    params = []
    for part in quoted.split("&") if quoted else ():
        name, found, value = part.partition("=")
        if not found:
            raise ValueError("a call's head has a parameter without a value")
        params.append((name, unquote_to_bytes(value).decode("latin-1")))
    return RequestTexts(method, path, query, headers, script, route, params, client)
