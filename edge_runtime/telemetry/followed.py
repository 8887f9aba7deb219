"""Which of a node's records answer a question of control, of those that are there and of those that come.

What comes is kept until it is sent, within bounds: where it is too much, every second record is left out, then three of
four, and so on, so that what is left shows all of the time. What was left out is counted.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.telemetry import records, search
from edge_runtime.telemetry.search import LineFilter

KEPT_LINES: Final = 2000
"""Records that wait to be sent."""
KEPT_BYTES: Final = 512 * 1024
"""Bytes of them."""
LINES_OF_CALL: Final = 20
"""Lines that are sent of what a call has logged."""
SLACK: Final = 5.0
"""Seconds by which the times of a call's record and of what it logged may be apart, besides how long it took."""
AFTERWARDS: Final = 30.0
"""Seconds after a call in which the node's log may say more of it, as where it trapped."""
BURST: Final = 2.0
"""Seconds of its rate that may be sent at once."""
KINDS: Final = ("lines", "calls", "functions")
"""The kinds of questions that this version can answer."""


class _Head(msgspec.Struct):
    """What a record is judged by."""

    t: str = ""
    kind: str = ""
    level: str = ""
    function: str = ""
    call: str = ""
    outcome: str = ""
    seconds: float = 0.0


_decode: Final = msgspec.json.Decoder(_Head).decode


class Taken(NamedTuple):
    lines: list[bytes]
    sampled: int
    """Records that were left out since the last time."""


class Past(NamedTuple):
    """What is there already."""

    lines: list[bytes]
    """In the order of their times, without LF."""
    more: bool
    """Whether older ones, or quicker calls, fit too."""


def _logged(folder: Path, calls: list[bytes]) -> list[bytes]:
    """Return what calls have logged, `LINES_OF_CALL` lines of each at most, and what the node says of them."""
    heads = [head for head in map(_decode, calls) if head.call]
    if not heads:
        return []
    ends = [records.seconds_of(head.t) for head in heads]
    # A call's record is written at its end.
    since, until = min(ends) - max(head.seconds for head in heads) - SLACK, max(ends) + AFTERWARDS
    counts = dict.fromkeys((head.call for head in heads), 0)
    found = []
    logged = LineFilter(since, until, (records.LOG, records.NODE), calls=tuple(counts))
    for line in search.search(folder, logged, search.MOST).lines:
        head = _decode(line)
        counts[head.call] += head.kind == records.LOG
        if head.kind == records.NODE or counts[head.call] <= LINES_OF_CALL:
            found.append(line)
    return found


def known(question: wire.Question) -> bool:
    """Return whether this version can answer the question."""
    return question.kind in KINDS and question.level in records.LEVELS


class Followed:
    """A question, and the records for it that wait to be sent."""

    def __init__(self, question: wire.Question) -> None:
        self.question = question
        self.rate = question.rate
        """Records a second that may be sent."""
        self.came = asyncio.Event()
        """Set while something waits."""
        self._kinds = (records.CALL,) if question.kind == "calls" else (records.LOG, records.NODE)
        self._levels = frozenset(records.LEVELS[records.LEVELS.index(question.level) :])
        self._keeps = True
        self._lines: list[bytes] = []
        self._size = 0
        self._count = 0
        self._stride = 1
        """Of so many records one is kept."""
        self._sampled = 0
        self._credit = 0.0
        self._at = clock.monotonic()

    def begin(self) -> None:
        """Forget what waits, and keep what comes from now on."""
        self._keeps = True
        self._forget()

    def rest(self) -> None:
        """Forget what waits, and keep nothing: what comes will be found by `past`."""
        self.begin()
        self._keeps = False

    def without_waiting(self, lines: list[bytes]) -> list[bytes]:
        """Return those of the lines, which `past` found, that don't wait to be sent in any case: it may find what came
        since `begin`, too. Their times can't tell, since records are made some time after what they tell of."""
        waiting = Counter(self._lines)
        kept = []
        for line in lines:
            if waiting[ended := line + b"\n"]:
                waiting[ended] -= 1
            else:
                kept.append(line)
        return kept

    def put(self, line: bytes) -> None:
        """Keep a record that has just come, where it answers the question: a tap of the ring."""
        if not self._keeps or records.time_in(line) is None or not self._fits(line):
            return
        self._count += 1
        if self._count % self._stride:
            self._sampled += 1
            return
        self._lines.append(line)
        self._size += len(line)
        self.came.set()
        while len(self._lines) > 1 and (len(self._lines) > KEPT_LINES or self._size > KEPT_BYTES):
            kept = self._lines[1::2]
            self._sampled += len(self._lines) - len(kept)
            self._lines, self._size, self._stride = kept, sum(map(len, kept)), self._stride * 2

    def take(self) -> Taken:
        """Return what may be sent now, at even distances where it isn't all."""
        now = clock.monotonic()
        self._credit = min(self._credit + (now - self._at) * self.rate, max(1.0, BURST * self.rate))
        self._at = now
        lines, most = self._lines, int(self._credit)
        if len(lines) > most:
            self._sampled += len(lines) - most
            lines = [lines[at * len(lines) // most] for at in range(most)]
        self._credit -= len(lines)
        taken = Taken(lines, self._sampled)
        self._forget()
        return taken

    def _forget(self) -> None:
        self._lines, self._size, self._stride, self._count, self._sampled = [], 0, 1, 0, 0
        self.came.clear()

    def past(self, folder: Path, since: float) -> Past:
        """Return the records of the ring in `folder` from a time (Unix seconds) on. It may take 0.3 s: not in the
        loop's thread. Raises: OSError, when the folder can't be read."""
        question, limit = self.question, self.question.limit
        of_calls, calls = question.kind == "calls", (question.call,) if question.call else ()
        level = "" if of_calls else question.level
        wanted = LineFilter(since, None, self._kinds, question.function, level, calls)
        if not of_calls:
            found = search.search(folder, wanted, limit)
            return Past(sorted(found.lines, key=lambda line: line[: records.TIME_END]), found.more)
        some = question.failed or question.slowest
        found = search.search(folder, wanted, search.MOST if some else limit)
        lines = [line for line in found.lines if self._fits(line)]
        if question.slowest:
            lines.sort(key=lambda line: _decode(line).seconds)
        lines, more = lines[-limit:], found.more or len(lines) > limit
        return Past([*lines, *_logged(folder, lines)], more)

    def _fits(self, line: bytes) -> bool:
        question = self.question
        try:
            head = _decode(line)
        except ValueError:
            return False
        if head.kind not in self._kinds or (question.function and head.function != question.function):
            return False
        if question.call and head.call != question.call:
            return False
        if question.kind == "calls":
            return not question.failed or head.outcome != "ok"
        return head.level in self._levels
