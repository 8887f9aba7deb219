"""The level of a line that a function wrote to its log: by the prefix `<N>` of syslog's levels, as systemd takes it
from a service's stderr (sd-daemon(3)). Extism's log functions write it; what has no prefix is `info`. Pure."""

from typing import Final

PREFIXES: Final = {"trace": b"<7>", "debug": b"<7>", "info": b"<6>", "warn": b"<4>", "error": b"<3>"}
"""The prefixes of Extism's levels."""
_LEVELS: Final = {
    **dict.fromkeys("0123", "error"),
    "4": "warning",
    **dict.fromkeys("56", "info"),
    "7": "debug",
}


def split(line: str) -> tuple[str, str]:
    """Return a line's level and its text."""
    if line[:1] == "<" and line[2:3] == ">" and (level := _LEVELS.get(line[1])):
        return level, line[3:]
    return "info", line


def shown(text: str) -> str:
    """Return lines as a person reads them: `warning: TEXT` in the place of a prefix, lines without one as they are."""
    if "<" not in text:
        return text
    return "".join(map(_shown, text.splitlines(keepends=True)))


def _shown(line: str) -> str:
    level, rest = split(line)
    return line if rest is line else f"{level}: {rest}"
