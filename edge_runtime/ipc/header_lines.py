"""The header lines of a function's answer: what they are made of, and whether they may go out. Pure.

The process that makes them of what a guest has written (`guests.abi.head`) may be in the guest's hands. So the front
looks at them once more: whatever that process says, what a client gets are header lines, and one response.
"""

import functools
import re
from typing import Final

LINES: Final = 128
"""Lines that a guest may write."""
TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
"""A character of a name, as a regular expression."""
TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]"
"""A character of a value."""
SERVERS: Final = rb"connection|keep-alive|te|trailer|transfer-encoding|upgrade|skerry-release"
"""Names of headers about the connection or the release, which are the server's to write."""
CACHED_BYTES: Final = 1024
"""Bytes of header lines: longer ones aren't worth caching, and not given to `length_cached`."""
NONE: Final = -1

_LINES: Final = re.compile(rb"(?:%b++:%b*+\r\n)*+" % (TOKEN, TEXT))
_SPECIAL: Final = re.compile(
    rb"^(content-length|status|date|x-request-id|%b):(?:[ \t]*([0-9]{1,18})[ \t]*\r\n)?" % SERVERS,
    re.IGNORECASE | re.MULTILINE,
)


def length(lines: bytes) -> int:
    """Return the Content-Length among header lines, each ended by CR LF; `NONE` where they have none.

    Raises: ValueError, when they can't go out.
    """
    if lines.count(b"\n") > LINES + 1 or not _LINES.fullmatch(lines):
        raise ValueError(f"header lines that aren't any: {lines[:80]!r}")
    found = NONE
    for match in _SPECIAL.finditer(lines):
        if match[2] is None or found != NONE or match[1].lower() != b"content-length":
            raise ValueError(f"a header line that is the server's to write: {lines[match.start() :][:80]!r}")
        found = int(match[2])
    return found


length_cached = functools.lru_cache(maxsize=256)(length)
"""`length`, with a cache of the last 256: most answers of a function have the header lines of the one before."""
