"""The lines of a node's records: one JSON object each, its time first, so that lines can be compared without parsing.

The kind `log` is a function's line, `call` is about a call, and `node` is from the node's own log. The kind `function`,
the counts of a function, is in no file: it is made on request.
"""

import math
import time
from datetime import UTC, datetime
from typing import Any, Final

import orjson

LEVELS: Final = ("debug", "info", "warning", "error")
"""From least to most important."""
LOG: Final = "log"
CALL: Final = "call"
NODE: Final = "node"
KINDS: Final = (LOG, CALL, NODE)
FUNCTION: Final = "function"

TIME_AT: Final = len('{"t":"')
"""Bytes from a line's start to its time."""
TIME_END: Final = TIME_AT + len("2026-11-28T06:00:00.123Z")
_START: Final = b'{"t":"'

_FIRST, _LAST = -62_135_596_800, 253_402_300_799
"""The first and the last second that a text can represent, in the years 1 and 9999."""
_second: tuple[int, str] = (-1, "")
"""The second that was last formatted, and its text."""


def time_text(at: float) -> str:
    """Return a time (Unix seconds) as in lines, in UTC with milliseconds: earlier times compare as less."""
    global _second
    whole = math.floor(at)
    second, text = _second
    if second != whole:
        # A question may contain any time, to which some seconds are added or subtracted.
        text = datetime.fromtimestamp(min(max(whole, _FIRST), _LAST), UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        text = text.rjust(20, "0")
        _second = whole, text
    return f"{text}{int((at - whole) * 1000):03d}Z"


def seconds_of(text: str) -> float:
    """Return the time (Unix seconds) of a line's text. Raises: ValueError, when it isn't one."""
    return datetime.fromisoformat(text).timestamp()


def time_in(line: bytes) -> bytes | None:
    """Return the text of a line's time; None if the line doesn't begin with one."""
    found = line[TIME_AT:TIME_END]
    return found if line.startswith(_START) and line[TIME_END : TIME_END + 1] == b'"' else None


def encode(fields: dict[str, Any]) -> bytes:
    """Return fields, the time first, as a line with its end."""
    try:
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        # The text has half a surrogate pair, for instance a file name that isn't UTF-8.
        return orjson.dumps({k: _sound(v) for k, v in fields.items()}, option=orjson.OPT_APPEND_NEWLINE)


def of_node(level: str, message: str, node: str, at: float | None = None) -> bytes:
    """Return a line of the node's own log."""
    moment = time_text(time.time() if at is None else at)
    return encode({"t": moment, "kind": NODE, "level": level, "node": node, "message": message})


def _sound(value: object) -> object:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
