"""Which ticks of a cron line are due: after a stop, beside one that still runs, and by clocks that jump. Pure.

Times are Unix seconds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from hashlib import sha256
from typing import Final

from control.protocol import cron
from control.protocol.manifest import Manifest

PATIENCE: Final = 300.0
"""Seconds for which a tick counts as due and not as missed: a node that is started again misses nothing."""
KEPT: Final = 32
"""The ended ticks of a line that are remembered, before the newest and after it; the libsql file keeps as many."""


@dataclass(slots=True, eq=False)
class Line:
    """A line of a function's schedule, or its calls after releases, and what is known of its ticks."""

    function: str
    cron: str
    """Empty for calls after releases, whose ticks the libsql file names."""
    place: tzinfo = UTC
    missed: str = "skip"
    most: int = 1
    """Ticks that may wait at once."""
    jitter: int = 0
    seed: str = ""
    ended: set[int] = field(default_factory=set)
    """Ticks that have ended, and since when the line counts."""
    waiting: list[int] = field(default_factory=list)
    """Ticks that are claimed and don't run yet, in order."""
    running: int | None = None
    look: float = 0.0
    """When it makes sense to ask `claim` again."""
    last_run: float | None = None
    """When the last run began; if that was before the node's start, when it ended."""
    last_status: str = ""
    """`ok`, or how it failed; empty if there was none."""
    late: float = 0.0
    """Seconds by which the last run began after its tick."""
    failures: int = 0
    """Ticks that failed since the start."""

    def follow(self, manifest: Manifest) -> None:
        """Go by a manifest from now on."""
        self.place, self.missed, self.jitter = cron.zone(manifest.timezone), manifest.missed, manifest.jitter_seconds
        self.most = manifest.missed_most if manifest.missed == "all" else 1
        self.look = 0.0

    def learn(self, ended: set[int], now: float) -> None:
        """Take the ticks that have ended from the file, which may be another one than before: one of a backup."""
        # By a clock that is behind them, since when the line counts is known here alone.
        self.ended = ended if any(tick <= now for tick in ended) else self.ended | ended

    def end(self, tick: int) -> None:
        """Note that a tick has ended."""
        self.ended.add(tick)
        before, after = sorted(t for t in self.ended if t < tick), sorted(t for t in self.ended if t > tick)
        self.ended = {tick, *before[-KEPT:], *after[:KEPT]}

    def due_at(self, tick: int) -> float:
        """Return when a tick may begin: after its jitter, which is the same however often it is asked."""
        if not self.jitter:
            return float(tick)
        drawn = sha256(f"{self.seed} {self.function} {self.cron} {tick}".encode()).digest()
        return tick + self.jitter * int.from_bytes(drawn[:4]) / 2**32

    def _since(self, now: float) -> float:
        """Return the time after which ticks count: the newest one that has ended.

        By a clock that is behind all that has ended, or was set back to there, it is now, and stays that.
        """
        before = [tick for tick in self.ended if tick <= now]
        if not before:
            self.ended.add(int(now))
            before = [int(now)]
        return max(*before, *self.waiting, self.running or 0)

    def claim(self, now: float) -> None:
        """Have the ticks wait that are due, by the rule for missed ones; set when to ask again."""
        if not self.cron:
            self.look = float("inf")
            return
        since, soonest = self._since(now), float("inf")
        found: list[int] = []
        for tick in self._before(now):
            if tick <= since:
                break
            at = self.due_at(tick)
            if at > now:
                soonest = at
                continue
            if self.missed == "skip" and now - at > PATIENCE:
                break
            found.append(tick)
            if len(found) == self.most:
                break
        if found:
            # Only "all" has older ones run before newer ones.
            self.waiting = [*self.waiting, *reversed(found)][-self.most :]
        self.look = min([soonest, *(self.due_at(tick) for tick in self._after(now))])

    @property
    def next_run(self) -> float | None:
        """When the next run is due; None if that isn't known."""
        if self.waiting:
            return float(self.waiting[0])
        return self.look if 0 < self.look < float("inf") else None

    def overdue(self, now: float) -> float:
        """Return by how many seconds the tick is late that waits, or by how many the last one was."""
        return max(0.0, now - self.waiting[0]) if self.waiting else self.late

    def _before(self, now: float) -> Iterator[int]:
        return _seconds(cron.ticks_before(self.cron, self.place, datetime.fromtimestamp(now, UTC)))

    def _after(self, now: float) -> list[int]:
        return list(_seconds(cron.ticks(self.cron, self.place, datetime.fromtimestamp(now, UTC)), 1))


def _seconds(ticks: Iterator[datetime], most: int | None = None) -> Iterator[int]:
    for number, tick in enumerate(ticks, 1):
        yield int(tick.timestamp())
        if number == most:
            return


def next_to_run(lines: Iterable[Line], room: int) -> list[Line]:
    """Return the lines of which a tick may begin now, those that have waited longest first, as many as there is room
    for; a function has one at a time."""
    lines = list(lines)
    busy = {line.function for line in lines if line.running is not None}
    chosen: list[Line] = []
    for line in sorted((line for line in lines if line.waiting), key=lambda line: line.waiting[0]):
        if len(chosen) < room and line.function not in busy:
            busy.add(line.function)
            chosen.append(line)
    return chosen
