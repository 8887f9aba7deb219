"""The lines of a function's log: their levels, and the line that says what was left out. Pure.

A level is a prefix `<N>` with syslog's levels, as systemd accepts it from a service's stderr (sd-daemon(3)). Extism's
log functions write it; a line without a prefix is `info`.
"""

import re
from typing import Final

PREFIXES: Final = {"trace": b"<7>", "debug": b"<7>", "info": b"<6>", "warn": b"<4>", "error": b"<3>"}
"""The prefixes of Extism's levels."""
_LEVELS: Final = {
    **dict.fromkeys("0123", "error"),
    "4": "warning",
    **dict.fromkeys("56", "info"),
    "7": "debug",
}
LINE: Final = b"<4>[skerry: %d bytes of this log were left out here]\n"
"""With the level `warning`. `wasi.c` writes the same."""
LONGEST: Final = len(LINE % 10**19) + 1
"""The most bytes that `with_loss` adds to a log."""
_AT_END: Final = re.compile(rb"\n?<4>\[skerry: \d{1,20} bytes of this log were left out here\]\n\Z")


def level_of(line: str) -> tuple[str, str]:
    """Return a line's level and its text."""
    if line[:1] == "<" and line[2:3] == ">" and (level := _LEVELS.get(line[1])):
        return level, line[3:]
    return "info", line


def shown(text: str) -> str:
    """Return lines in readable form: `warning: TEXT` instead of a prefix, lines without one unchanged."""
    if "<" not in text:
        return text
    return "".join(map(_shown, text.splitlines(keepends=True)))


def _shown(line: str) -> str:
    level, rest = level_of(line)
    return line if rest is line else f"{level}: {rest}"


def with_loss(kept: bytes, lost: int) -> bytes:
    """Return a log, with a line added that says that this many bytes after it were left out."""
    if not lost:
        return kept
    return kept + (b"" if not kept or kept.endswith(b"\n") else b"\n") + LINE % lost


def without_loss(log: bytes) -> tuple[bytes, bytes]:
    """Return a log without the line at its end that says what was left out there, and that line."""
    found = _AT_END.search(log, max(0, len(log) - len(LINE) - 20))
    return (log, b"") if found is None else (log[: found.start()], log[found.start() :])
