"""The ids of requests: the client's own, if it has sent a valid one, else one of ours."""

import itertools
import re
import secrets
from typing import Final

HEADER: Final = b"x-request-id"
TRACE: Final = frozenset((HEADER, b"traceparent"))
"""The headers that differ from request to request. Functions get them if their manifests ask for them: calls with the
same head, byte for byte, share what a worker has made of it."""
FITS: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
"""What a client's id may look like."""

_PREFIX: Final = secrets.token_hex(4).encode()
_numbers: Final = itertools.count(1)


def made() -> bytes:
    """Return an id that this process hasn't made before, and most likely no other process: `6f2a1b3c-17`."""
    return b"%b-%d" % (_PREFIX, next(_numbers))
