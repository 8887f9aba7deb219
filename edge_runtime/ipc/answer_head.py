"""The head of a function's answer: which header lines a guest may write, and how they are sent. Pure.

A worker makes them from its guest's output (`parse`, `complete`), and may have been taken over by the guest. So the
front checks them once more (`content_length`): whatever a worker sends, a client gets valid header lines and one
response. Text here is latin-1: each code point below 256 stands for one byte.
"""

import functools
import re
from typing import Final, NamedTuple, NoReturn

LINES: Final = 128
"""Lines that a guest may write."""
TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
"""A character of a name, as a regular expression."""
TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]"
"""A character of a value."""
SERVERS: Final = rb"connection|keep-alive|te|trailer|transfer-encoding|upgrade|skerry-release"
"""Names of headers about the connection or the release, which only the server writes."""
CACHED_BYTES: Final = 1024
"""Bytes of header lines: longer ones aren't worth caching, and aren't passed to `content_length_cached`."""
LIMIT: Final = 65_000
"""Bytes of header lines. They grow a little on their way, and a frame's head holds 65,535."""
BODILESS: Final = (204, 205, 304)
"""Statuses whose responses have no body."""
NO_LENGTH: Final = -1


class ResponseInvalid(ValueError):
    """The guest didn't write a valid response; the message says what is wrong with it."""


class Head(NamedTuple):
    lines: bytes
    """The header lines, each ended by CR LF, without Status, Content-Length, Date and
    X-Request-Id."""
    status: str | None
    """The value of Status."""
    length: int | None
    """The value of Content-Length."""
    has_content_type: bool
    """Whether there is a Content-Type that isn't empty."""
    has_location: bool
    """Whether there is a Location that isn't empty."""


CheckedResponse = tuple[int, bytes, bytes]
"""The status, the header lines as they are sent, and the body."""


_BLOCK: Final = re.compile(rb"(?:%b++:%b*+\r?\n)*+" % (TOKEN, TEXT))
_NAME: Final = re.compile(TOKEN + b"+")
_VALUE: Final = re.compile(TEXT + b"*")
_SPECIAL: Final = re.compile(
    rb"^(status|content-length|date|content-type|location|x-request-id|%b):(.*)\r\n" % SERVERS,
    re.IGNORECASE | re.MULTILINE,
)
_TAKEN: Final = (b"status", b"content-length", b"date", b"x-request-id")
"""Headers that are removed, because the server writes its own."""
_SEEN: Final = (*_TAKEN, b"content-type", b"location")
"""The other headers of `_SPECIAL` are about the connection or the release, and refused: they are the server's to
write."""


def parse(block: bytes) -> Head:
    """Parse header lines, each ended by LF or CR LF.

    Raises: ResponseInvalid, when they can't be sent.
    """
    count = block.count(b"\n")
    if count > LINES:
        raise ResponseInvalid(f"it wrote {count} header lines; {LINES} are allowed")
    if not _BLOCK.fullmatch(block):
        _explain(block)
    if block.count(b"\r\n") != count:
        block = block.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    lines, after = b"", 0
    values: dict[bytes, str] = {}
    for match in _SPECIAL.finditer(block):
        name = match[1].lower()
        if name not in _SEEN:
            raise ResponseInvalid(f"it wrote the header {match[1].decode()}, which is for the server to write")
        if name in values and name != b"x-request-id":
            raise ResponseInvalid(f"it wrote {match[1].decode()} twice")
        values[name] = match[2].strip(b" \t").decode("latin-1")
        if name in _TAKEN:
            lines += block[after : match.start()]
            after = match.end()
    return Head(
        lines + block[after:],
        values.get(b"status"),
        _length(values.get(b"content-length")),
        bool(values.get(b"content-type")),
        bool(values.get(b"location")),
    )


def fields(lines: bytes) -> list[tuple[str, str]]:
    """Return the names and values of checked header lines, as RFC 9110 reads them: any space around a value isn't part
    of it."""
    found = [line.partition(":") for line in lines.decode("latin-1").split("\r\n") if line]
    return [(name, value.strip(" \t")) for name, _, value in found]


parse_cached = functools.lru_cache(maxsize=256)(parse)
"""Parse header lines as `parse` does, with a cache of the last 256 heads: a function's responses mostly begin alike."""


def _length(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise ResponseInvalid(f"it wrote Content-Length: {value[:80]!r}, which is no number")
    return int(value)


def _explain(block: bytes) -> NoReturn:
    """Raise the error that says what is wrong with lines that don't match `_BLOCK`.

    Raises: ResponseInvalid, always.
    """
    for line in block.replace(b"\r\n", b"\n").split(b"\n")[:-1]:
        name, colon, value = line.partition(b":")
        shown = name[:80].decode("latin-1")
        if not colon:
            raise ResponseInvalid(f"it wrote the header line {shown!r}, which has no colon")
        if not _NAME.fullmatch(name):
            raise ResponseInvalid(f"it wrote the header name {shown!r}, which has characters that no name may have")
        if not _VALUE.fullmatch(value):
            shown_value = value.strip(b" \t")[:80].decode("latin-1")
            raise ResponseInvalid(f"it wrote a control character in the value of {shown}: {shown_value!r}")
    raise ResponseInvalid(f"its last header line has no end: {block[-40:]!r}")


def complete(head: Head, status: int, body: bytes, method: str) -> bytes:
    """Check that head and body match, and return the header lines as they are sent. `method` is the request's: the
    response to a HEAD, without a body, may give the length that a GET would get.

    Raises: ResponseInvalid, when they don't match.
    """
    length = head.length
    if body:
        if status in BODILESS:
            raise ResponseInvalid(f"it wrote a body of {len(body)} bytes with the status {status}, which has none")
        if not head.has_content_type:
            raise ResponseInvalid("it wrote a body without a Content-Type")
    if length is None or length == len(body):
        return head.lines
    if body or not (status == 304 or (method == "HEAD" and status not in BODILESS)):
        raise ResponseInvalid(f"it wrote Content-Length: {length} and a body of {len(body)} bytes")
    return head.lines if status == 304 else head.lines + b"content-length: %d\r\n" % length


# The front's check.

_WHOLE: Final = re.compile(rb"(?:%b++:%b*+\r\n)*+" % (TOKEN, TEXT))
_SERVERS_OWN: Final = re.compile(
    rb"^(content-length|status|date|x-request-id|%b):(?:[ \t]*([0-9]{1,18})[ \t]*\r\n)?" % SERVERS,
    re.IGNORECASE | re.MULTILINE,
)


def content_length(lines: bytes) -> int:
    """Return the Content-Length among header lines, each ended by CR LF; `NO_LENGTH` if they have none.

    Raises: ValueError, when they can't be sent.
    """
    if lines.count(b"\n") > LINES + 1 or not _WHOLE.fullmatch(lines):
        raise ValueError(f"header lines that aren't any: {lines[:80]!r}")
    found = NO_LENGTH
    for match in _SERVERS_OWN.finditer(lines):
        if match[2] is None or found != NO_LENGTH or match[1].lower() != b"content-length":
            raise ValueError(f"a header line that is the server's to write: {lines[match.start() :][:80]!r}")
        found = int(match[2])
    return found


content_length_cached = functools.lru_cache(maxsize=256)(content_length)
"""`content_length`, with a cache of the last 256: most answers of a function have the same lines as the one before."""
