"""What the log of a call says where some of it was left out, in a line of its own. Pure. `wasi.c` writes the same."""

import re
from typing import Final

LINE: Final = b"<4>[skerry: %d bytes of this log were left out here]\n"
"""With the level `warning` (`log_levels`)."""
LONGEST: Final = len(LINE % 10**19) + 1
"""Bytes that `with_loss` adds to a log at most."""
_AT_END: Final = re.compile(rb"\n?<4>\[skerry: \d{1,20} bytes of this log were left out here\]\n\Z")


def with_loss(kept: bytes, lost: int) -> bytes:
    """Return a log behind which so many bytes were left out, with the line that says so."""
    if not lost:
        return kept
    return kept + (b"" if not kept or kept.endswith(b"\n") else b"\n") + LINE % lost


def split(log: bytes) -> tuple[bytes, bytes]:
    """Return a log without the line at its end that says what was left out there, and that line."""
    found = _AT_END.search(log, max(0, len(log) - len(LINE) - 20))
    return (log, b"") if found is None else (log[: found.start()], log[found.start() :])
