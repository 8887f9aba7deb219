"""Finds lines in a ring's files while the front continues to write, truncate and remove them.

Never call it in the loop's thread: a search of 64 MiB takes up to 0.3 s.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from edge_runtime.telemetry import records
from edge_runtime.telemetry.ring import SLACK, numbers, path_of

MOST: Final = 10_000
"""The most lines that a search returns."""
NEEDLES: Final = 200
"""The most values of a field for which a file is scanned; with more, every line is parsed, which takes five times as
long."""
_PIECE: Final = 64 << 20
"""The most bytes of a file that are searched; a ring's files are smaller."""


class LineFilter(NamedTuple):
    """Which lines are wanted; empty fields or None match all lines."""

    since: float | None = None
    """From this time on (Unix seconds)."""
    until: float | None = None
    """Before this time."""
    kinds: tuple[str, ...] = ()
    """Of one of these kinds."""
    function: str = ""
    level: str = ""
    """This level, or a more important one; the lowest also matches lines without a level."""
    calls: tuple[str, ...] = ()
    """Of one of the calls with these ids."""


class _Matcher:
    """Tells whether a line is wanted."""

    def __init__(self, wanted: LineFilter) -> None:
        self._since = None if wanted.since is None else records.time_text(wanted.since)
        self._until = None if wanted.until is None else records.time_text(wanted.until)
        self._fields = [(name, frozenset(values)) for name, values in _values(wanted) if values]

    def __call__(self, line: bytes) -> bool:
        try:
            record: Any = orjson.loads(line)
        except orjson.JSONDecodeError:
            # A torn line, or not one of the ring's.
            return False
        moment = record.get("t") if isinstance(record, dict) else None
        if not isinstance(moment, str):
            return False
        if (self._since is not None and moment < self._since) or (self._until is not None and moment >= self._until):
            return False
        return all(isinstance(value := record.get(name), str) and value in values for name, values in self._fields)


class FoundLines(NamedTuple):
    lines: list[bytes]
    """The newest matching lines, up to the requested number, in the order in which they were written, without LF."""
    more: bool
    """Whether older lines match too."""


def search(folder: Path, wanted: LineFilter, limit: int = 1000) -> FoundLines:
    """Return lines of the ring in `folder`. Torn and foreign lines are skipped; a missing folder has no lines.

    Raises: OSError, when the folder can't be read.
    """
    limit, fits = min(limit, MOST), _Matcher(wanted)
    pieces: list[list[bytes]] = []
    count = 0
    try:
        files = numbers(folder)
    except FileNotFoundError:
        files = []
    for number in reversed(files):
        data = _content(path_of(folder, number))
        found = list[bytes]()
        for line in _backwards(data, wanted, fits):
            if count == limit:
                return FoundLines(_joined([*pieces, found]), True)
            found.append(line)
            count += 1
        pieces.append(found)
    return FoundLines(_joined(pieces), False)


class Follower:
    """Reads new lines of a ring, starting with those written after it was made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = self._files()
        self._number = found[-1] if found else 0
        self._at = _size(path_of(folder, self._number))
        """Bytes already read of that file."""

    def lines(self, wanted: LineFilter) -> list[bytes]:
        """Return the wanted lines that were written since the last call, without LF.

        Raises: OSError, when the folder or a file can't be read.
        """
        made, fits = list[bytes](), _Matcher(wanted)
        for number in [n for n in self._files() if n >= self._number]:
            if number != self._number:
                self._number, self._at = number, 0
            path = path_of(self._folder, number)
            if _size(path) < self._at:
                # Somebody truncated it.
                self._at = 0
            data = _content(path, self._at)
            end = data.rfind(b"\n") + 1
            self._at += end
            made += [line for line in data[:end].split(b"\n") if fits(line)]
        return made

    def _files(self) -> list[int]:
        try:
            return numbers(self._folder)
        except FileNotFoundError:
            return []


def _joined(pieces: list[list[bytes]]) -> list[bytes]:
    """Return lines oldest first; in `pieces`, files are newest first, and so are the lines in each."""
    return [line for piece in reversed(pieces) for line in reversed(piece)]


def _content(path: Path, start: int = 0) -> bytes:
    """Return a file's content from `start`; nothing if it has been removed.

    It isn't mapped: reading the truncated part of a mapped file kills the process.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    with os.fdopen(handle, "rb") as file:
        file.seek(start)
        return file.read(_PIECE)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _values(wanted: LineFilter) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the wanted values of each field, the rarest field first; none if all are wanted."""
    function = (wanted.function,) if wanted.function else ()
    return ("call", wanted.calls), ("level", _from(wanted.level)), ("function", function), ("kind", wanted.kinds)


def _from(level: str) -> tuple[str, ...]:
    """Return a level and those above it; only itself if it is unknown; none for the lowest, which excludes nothing."""
    if level in ("", records.LEVELS[0]):
        return ()
    return records.LEVELS[records.LEVELS.index(level) :] if level in records.LEVELS else (level,)


def _backwards(data: bytes, wanted: LineFilter, fits: _Matcher) -> Iterator[bytes]:
    """Yield the wanted lines of a file's content, the last one first."""
    low, high = 0, data.rfind(b"\n") + 1
    if wanted.since is not None:
        low = _first_from(data, high, records.time_text(wanted.since - SLACK).encode())
    if wanted.until is not None:
        high = _first_from(data, high, records.time_text(wanted.until + SLACK).encode())
    needle = _needle(wanted)
    if needle is None:
        spans = _all_lines(data, low, high)
    else:
        starts = [data.rfind(b"\n", low, found.start()) + 1 or low for found in needle.finditer(data, low, high)]
        spans = ((start, data.find(b"\n", start)) for start in reversed(dict.fromkeys(starts)))
    for start, end in spans:
        line = data[start:end]
        if fits(line):
            yield line


def _all_lines(data: bytes, low: int, high: int) -> Iterator[tuple[int, int]]:
    end = high - 1
    while end > low:
        start = max(data.rfind(b"\n", low, end) + 1, low)
        yield start, end
        end = start - 1


def _needle(wanted: LineFilter) -> "re.Pattern[bytes] | None":
    """Return a pattern that every wanted line matches, for the rarest requested field; None if there is none."""
    # A quotation mark in a text is escaped by a backslash, so no text in a line contains one of these patterns.
    for name, values in _values(wanted):
        if 0 < len(values) <= NEEDLES:
            any_of = b"|".join(re.escape(orjson.dumps(value)) for value in values)
            return re.compile(b'"%b":(?:%b)' % (name.encode(), any_of))
    return None


def _first_from(data: bytes, high: int, moment: bytes) -> int:
    """Find, by bisection, the start of a line before which all lines are earlier than `moment`.

    Lines without a time count like those after them.
    """
    low = 0
    end = high
    while low < end:
        middle = data.rfind(b"\n", low, (low + end) // 2) + 1 or low
        at, behind, found = middle, middle, None
        while at < end and found is None:
            behind = data.find(b"\n", at) + 1 or end
            found = records.time_in(data[at:behind])
            at = behind
        if found is not None and found < moment:
            low = behind
        else:
            end = middle
    return low
