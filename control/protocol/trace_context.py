"""What a process passes on so that a trace covers the next one too (W3C Trace Context), and to a collector. Pure.

A trace is a tree of spans, timed pieces of work.
"""

import re
from typing import Final, NamedTuple

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z", re.DOTALL)
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e][\x20-\x7e]*)\Z")
_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)


class Place(NamedTuple):
    """A place in a trace: the parent of the next spans."""

    trace: bytes
    """Id of the trace, 16 bytes."""
    span: bytes
    """Id of the span, 8 bytes."""
    sampled: bool = True
    """Whether the process that made the span sends it to a collector."""

    def header(self) -> str:
        """Return the value of `traceparent` for requests made from here."""
        return f"00-{self.trace.hex()}-{self.span.hex()}-{int(self.sampled):02x}"


def parse(header: bytes) -> Place | None:
    """Return the place that a `traceparent` names; None if it is malformed: a new trace then begins."""
    match = _TRACEPARENT.match(header)
    if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
        return None
    trace, span = bytes.fromhex(match[2].decode()), bytes.fromhex(match[3].decode())
    if trace == _NO_TRACE or span == _NO_SPAN:
        return None
    return Place(trace, span, sampled=bool(int(match[4], 16) & 1))


def collector_headers(text: str) -> dict[str, str]:
    """Return the headers for a collector from a file's text, one `NAME: VALUE` per line.

    Raises: ValueError, when a line is wrong; it says which line but doesn't quote it, since it may contain a secret.
    """
    headers = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            match = _HEADER.match(line.strip())
            if match is None:
                raise ValueError(f"line {number} must be NAME: VALUE in ASCII")
            headers[match[1]] = match[2]
    return headers
