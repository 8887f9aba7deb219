"""Takes what nodes send with polls about calls and themselves: added up in memory, written once a minute.

A poll needs no query: its numbers are added to sums in this replica's memory. Each past minute is written as one row
per group; a group whose numbers arrive faster, for instance after a change of release, or some of whose nodes have the
release of a rollout, is written each `HURRY` seconds. So a kill -9 loses what arrived in the last minute, and SIGTERM
loses nothing.
"""

import logging
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import msgspec

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.protocol import histogram, wire
from control.protocol.counts import counted
from control.storage import queries
from control.storage.database import Database
from control.sync.fleet_cache import CachedGroup, CachedNode
from control.telemetry import call_history
from control.telemetry.call_history import CallTally, Tallies
from control.telemetry.node_health import NodeHealthStore

HURRY = 5.0
"""Seconds between two checks whether there is something to write."""
SHORT = 30.0
"""Numbers that cover fewer seconds than this come from a group whose release has just changed."""
KEPT = timedelta(minutes=10)
"""How long unwritten minutes are kept; hours are summed up after that."""
LAST_FLUSH = 2.0
"""Seconds for writing the rest when the replica stops."""
LONGEST = 512 * 1024
"""The most bytes of a node's numbers."""
CALLS_A_SECOND = 200_000
"""More calls than a node can have."""
SLACK, LONGEST_WHILE = 60.0, 90 * 86400.0
"""Seconds by which a node's clock may be wrong, and the longest interval that is trusted."""
COST, COST_OF_FUNCTION, ALLOWED = 0.5, 0.002, 10.0
"""Seconds for which a node's numbers count, and each function of them; a node may be this far ahead of the time. A node
sends some at most every 5 s."""
WAITING = 5000
"""The most functions' numbers that may wait for the names of their release's functions."""
RELEASES_KEPT = 2000
"""Releases that are kept in memory."""
RELEASES_AT_ONCE = 100
"""Releases that are read in one query."""
NAMES_KEPT, NONE_KEPT = 600.0, 60.0
"""Seconds for which a release's functions are cached, and the fact that a release doesn't exist: metadata restored from
a backup may give its number to another release, and a node may name a future one."""


class ReleasedFunction(NamedTuple):
    """A function of a release."""

    group_id: str
    number: int
    name: str


SQL = queries.load("numbers")
RELEASE_FUNCTIONS = SQL.rows("release_functions", ReleasedFunction)
log = logging.getLogger("skerry.numbers")
_decode = msgspec.msgpack.Decoder(wire.Numbers).decode


class ReleaseFunctions:
    """The sorted names of releases' functions, in memory: nodes' numbers refer to them by index."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._names: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}
        """Until when they are kept, in the clock's `monotonic`, and the names."""

    def get(self, group_id: str, release: int, time: float) -> tuple[str, ...] | None:
        """Return a release's function names: none if there is no such release, None if they must be read first."""
        until, names = self._names.get((group_id, release), (0.0, ()))
        return names if time < until else None

    async def read(self, releases: Collection[tuple[str, int]], time: float) -> None:
        """Read the functions of these releases. Raises: ProblemError, when the database doesn't answer."""
        wanted = [key for key in releases if self.get(*key, time) is None][:RELEASES_AT_ONCE]
        if not wanted:
            return
        if len(self._names) + len(wanted) > RELEASES_KEPT:
            self._names.clear()
        ids, numbers = [id for id, _ in wanted], [str(number) for _, number in wanted]
        found: dict[tuple[str, int], list[str]] = {key: [] for key in wanted}
        for row in await self._db.read(lambda conn: conn.fetch(RELEASE_FUNCTIONS, ids, numbers)):
            found[row.group_id, row.number].append(row.name)
        for key, names in found.items():
            self._names[key] = (time + (NAMES_KEPT if names else NONE_KEPT), tuple(sorted(names)))


class _Told:
    """What a node sent last."""

    __slots__ = ("boot_id", "free_at", "sequence")

    def __init__(self) -> None:
        self.boot_id = ""
        self.sequence = -1
        self.free_at = 0.0


class NumbersIngest:
    """Takes nodes' numbers; `run` writes them."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self.replica = str(uuid4())
        self.nodes = NodeHealthStore(db, clock)
        self._names = ReleaseFunctions(db)
        self._told: dict[str, _Told] = {}
        self._minutes: dict[datetime, dict[str, Tallies]] = {}
        """The counts of minutes that aren't stored yet, by minute and group."""
        self._minute = datetime.min.replace(tzinfo=clock.now().tzinfo)
        self._current: dict[str, Tallies] = {}
        self._totals: dict[str, Tallies] = {}
        """By group: the calls of the newest two releases since the start, without unfinished minutes."""
        self._hurried: set[str] = set()
        self._waiting: list[tuple[str, wire.FunctionNumbers, float]] = []
        self.taken = self.again = self.refused = 0
        """How many messages were counted, were already known, and were refused, wholly or in part."""
        self._refusals = Outage(log, "numbers of nodes are refused, and their polls answered all the same")
        self._outage = Outage(log, "numbers of nodes can't be written yet")

    def take(self, node: CachedNode, group: CachedGroup, poll: wire.Poll, now: datetime) -> None:
        """Count what a poll of a node of `group` contains.

        Mistakes are logged, but the poll isn't refused because of them.
        """
        try:
            self._take(node, group, poll, now)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            self._refuse(node.name, str(error))

    def _take(self, node: CachedNode, group: CachedGroup, poll: wire.Poll, now: datetime) -> None:
        if len(poll.numbers) > LONGEST:
            raise ValueError(f"{len(poll.numbers)} bytes, and {LONGEST} is the most")
        numbers = _decode(poll.numbers)
        told = self._told.get(node.id)
        if told is None:
            told = self._told[node.id] = _Told()
        elif told.boot_id == poll.boot_id and numbers.sequence <= told.sequence:
            self.again += 1
            return
        time = self._clock.monotonic()
        if told.free_at > time + ALLOWED:
            raise ValueError("more of them than a node has to tell")
        told.free_at = max(told.free_at, time) + COST + COST_OF_FUNCTION * len(numbers.functions)
        told.boot_id, told.sequence = poll.boot_id, numbers.sequence
        self.taken += 1
        if numbers.node is not None:
            self.nodes.take(node, numbers.node)
        if poll.generation < node.moved_generation:
            # It was moved and hasn't reached its new group's release yet: these numbers are about the old group's.
            return
        if now >= self._minute + timedelta(minutes=1):
            self._turn(now)
        if numbers.seconds < SHORT or (node.release_id is not None and node.generation > group.generation):
            # The gates of a rollout go by what all replicas have counted.
            self._hurried.add(node.group_id)
        most = CALLS_A_SECOND * (min(numbers.seconds, LONGEST_WHILE) + SLACK)
        wrong = ""
        for function in numbers.functions:
            try:
                # This replica may not know the newest release yet.
                if function.release > group.newest_number + 1:
                    raise ValueError(f"its group has no release {function.release}")
                names = self._names.get(node.group_id, function.release, time)
                if names is None:
                    self._wait(node.group_id, function, most)
                else:
                    self._count(node.group_id, names, function, most)
            except ValueError as error:
                wrong = str(error)
        if wrong:
            raise ValueError(wrong)

    def _count(self, group_id: str, names: tuple[str, ...], function: wire.FunctionNumbers, most: float) -> None:
        """Add a function's calls to the current minute. Raises: ValueError, when they can't be true."""
        if function.index >= len(names):
            raise ValueError(f"the release {function.release} has no function number {function.index}")
        times = histogram.unpack(function.seconds)
        calls = sum(times.values())
        if calls > most:
            raise ValueError(f"{calls} calls are more than a node can have in that time")
        pairs = function.outcomes
        if len(pairs) % 2 or sum(pairs[1::2]) > calls:
            raise ValueError("more calls that failed than calls")
        current = self._current.get(group_id)
        if current is None:
            current = self._current[group_id] = {}
        key = names[function.index], function.release
        tally = current.get(key)
        if tally is None:
            tally = current[key] = CallTally()
        histogram.add(tally.times, times)
        for code, count in zip(pairs[::2], pairs[1::2], strict=True):
            name = wire.OUTCOMES[code if code < len(wire.OUTCOMES) else 0]
            tally.outcomes[name] = tally.outcomes.get(name, 0) + count

    def _wait(self, group_id: str, function: wire.FunctionNumbers, most: float) -> None:
        if len(self._waiting) >= WAITING:
            raise ValueError("too many numbers wait for their releases to be read")
        self._waiting.append((group_id, function, most))

    def _refuse(self, name: str, why: str) -> None:
        self.refused += 1
        self._refusals.failed(f"{name}: {why}")

    def _turn(self, now: datetime) -> None:
        """Begin another minute. If the clock has gone back, the last one continues."""
        for group_id, lately in self._current.items():
            total = self._totals.setdefault(group_id, {})
            call_history.add_tallies(total, lately)
            newest = sorted({release for _, release in total})[-2:]
            for key in [key for key in total if key[1] not in newest]:
                del total[key]
        self._minute = now.replace(second=0, microsecond=0)
        self._current = self._minutes[self._minute] = {}

    # For readers

    def unwritten(self) -> dict[datetime, dict[str, Tallies]]:
        """Return the counts that aren't stored yet, by minute and group. Don't change them."""
        return self._minutes

    def groups(self) -> list[str]:
        """Return the ids of all groups whose calls were counted."""
        return sorted(self._totals.keys() | self._current.keys())

    def totals(self, group_id: str) -> tuple[Tallies, Tallies]:
        """Return a group's calls since the start: those of past minutes, and those of the current minute.

        Only the two newest releases count. Don't change the tallies; they are consistent until the caller awaits.
        """
        return self._totals.get(group_id, {}), self._current.get(group_id, {})

    # Writing

    async def run(self) -> None:
        """Write what is due, and everything else when cancelled."""
        try:
            while True:
                await self._clock.sleep(HURRY)
                await self._try(self._clock.now(), everything=False)
        finally:
            try:
                async with self._clock.timeout(LAST_FLUSH):
                    await self._try(self._clock.now(), everything=True)
            except TimeoutError:
                minutes = counted(len(self._minutes), "minute")
                log.warning("numbers of %s were not written before the end", minutes)

    async def _try(self, now: datetime, *, everything: bool) -> None:
        try:
            await self.resolve()
            await self.write(now, everything=everything)
            await (self.nodes.write() if everything else self.nodes.write_if_due(self._clock.monotonic()))
            self._outage.worked()
        except ProblemError as problem:
            self._outage.failed(problem.detail)
        except Exception:
            log.exception("numbers of nodes could not be written")
        self._refusals.worked()
        for minute in [minute for minute in self._minutes if minute < now - KEPT and minute != self._minute]:
            log.warning("the numbers of %s couldn't be written for %s, and are dropped", minute, KEPT)
            del self._minutes[minute]

    async def resolve(self) -> None:
        """Read the functions of unknown releases, and count the numbers that waited for them. Raises: ProblemError."""
        time, now = self._clock.monotonic(), self._clock.now()
        await self._names.read({(group_id, function.release) for group_id, function, _ in self._waiting}, time)
        waiting, self._waiting = self._waiting, []
        if waiting and now >= self._minute + timedelta(minutes=1):
            self._turn(now)
        for group_id, function, most in waiting:
            names = self._names.get(group_id, function.release, time)
            if names is None:
                self._waiting.append((group_id, function, most))
                continue
            try:
                self._count(group_id, names, function, most)
            except ValueError as error:
                self._refuse("a node", str(error))
        if len(self._told) > 1000:
            past = time - 3600
            self._told = {id: told for id, told in self._told.items() if told.free_at > past}

    async def write(self, now: datetime, *, everything: bool = False) -> None:
        """Write past minutes, and the groups whose numbers arrive fast. Raises: ProblemError."""
        if now >= self._minute + timedelta(minutes=1) and self._current:
            self._turn(now)
        for minute in sorted(self._minutes):
            over = minute < self._minute
            counted = self._minutes[minute]
            due = counted if over or everything else {id: counted[id] for id in self._hurried if id in counted}
            if due:
                await call_history.write(self._db, self.replica, minute, due)
            if over:
                del self._minutes[minute]
            else:
                self._hurried.clear()
