"""How many nodes have each standing, as `/metrics`, the console and `skerry status --watch` show the whole fleet.

It is read only while somebody looks, and everybody shares a recent reading. The database counts, so a reading costs
this process the same for any fleet: 42 ms of the database's CPU at 200,000 nodes.
"""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from control.clock import Clock
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.standing import STANDINGS, Standing, standing
from control.telemetry.shared_reading import SharedReading

PERIOD = 1.0
"""The fewest seconds between the starts of two readings (and see `shared_reading.REST`)."""
LATE = timedelta(seconds=3)
"""A summary that was read with the grid is shown if it is at most this much older than the newest summary."""
EXAMPLES = 5
"""Names of nodes that are read for a cause."""
MOST_CAUSES = 100
"""The most causes whose texts and names are read: a node may fail with any code."""


class TargetedGroup(NamedTuple):
    """A group, the number of its release and of the previous one; None if there is none."""

    id: str
    name: str
    release: int | None
    earlier_release: int | None


class CountRow(NamedTuple):
    """How many nodes of a group are alike."""

    group_id: str
    state: str
    at_target: bool
    at_earlier: bool
    error_code: str
    own_release: int | None
    """The number of their own release, if that is their target; what is earlier is then their group's."""
    held: bool
    """Whether they carry out a restore or stay at one; they are counted among the others, too."""
    restored: int | None
    """Of held ones: the number of the release of their group that they have brought back."""
    nodes: int

    def runs(self, group: TargetedGroup) -> int | None:
        """Return the number of the release of their group that they run, as far as it is known."""
        if self.own_release is None:
            target, earlier = group.release, group.earlier_release
        else:
            target, earlier = self.own_release, group.release
        return target if self.at_target else earlier if self.at_earlier else None


class OverdueRow(NamedTuple):
    """How many overdue nodes of a group have the same standing."""

    group_id: str
    state: str
    at_target: bool
    has_error: bool
    nodes: int


class ClonedRow(NamedTuple):
    """How many nodes of a group are cloned."""

    group_id: str
    nodes: int


class ExampleRow(NamedTuple):
    """A node that fails."""

    group_id: str
    error_code: str
    name: str
    error_message: str
    error_at: datetime | None


class GridRow(NamedTuple):
    """The nodes of a group: a letter for each, and their names separated by spaces."""

    group_id: str
    letters: str
    names: str


SQL = queries.load("fleet_summary")
GROUPS = SQL.rows("groups", TargetedGroup)
COUNTS = SQL.rows("counts", CountRow)
OVERDUE = SQL.rows("overdue", OverdueRow)
CLONED = SQL.rows("cloned", ClonedRow)
EXAMPLE_NODES = SQL.rows("examples", ExampleRow)
GRID = SQL.rows("grid", GridRow)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why nodes fail."""

    code: str
    text: str
    """A recent message of one of them; '' if there are more than `MOST_CAUSES`."""
    at: datetime | None
    """When that one failed."""
    groups: dict[str, int]
    """How many nodes fail with it, by group."""
    examples: tuple[str, ...]
    """Names of some of them."""

    @property
    def nodes(self) -> int:
        """Return how many nodes fail with it."""
        return sum(self.groups.values())


@dataclass(frozen=True)
class GroupSummary:
    """The standings of a group's nodes; removed ones aren't counted."""

    name: str
    release: int | None
    """The number of the group's release; None if it has none."""
    counts: dict[tuple[Standing, int | None], int]
    """How many nodes there are, by standing and by the number of the release that they run. The number is known if they
    run their own release, the group's, or the one before that, or are held; None: another one, none, or unknown."""
    overdue: dict[Standing, int]
    """How many of them are overdue, by standing."""
    causes: tuple[Cause, ...]
    """Of failing nodes, by code: the most frequent one first."""
    cloned: int = 0
    """How many of them look like two processes that poll alternately."""

    @cached_property
    def standings(self) -> dict[Standing, int]:
        """How many nodes stand how: each standing, in the order of `STANDINGS`."""
        return _by_standing(self.counts.items())

    @cached_property
    def nodes(self) -> int:
        """Return the number of the group's nodes."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class FleetSummary:
    """The standings of the nodes of some groups, at one moment."""

    read_at: datetime
    groups: tuple[GroupSummary, ...]
    """By name, including groups without nodes."""

    def of(self, names: Collection[str] | None) -> "FleetSummary":
        """Return the summary of only these groups; None means all."""
        if names is None:
            return self
        return replace(self, groups=tuple(group for group in self.groups if group.name in names))

    @cached_property
    def nodes(self) -> int:
        """Return the number of nodes."""
        return sum(group.nodes for group in self.groups)

    @cached_property
    def standings(self) -> dict[Standing, int]:
        """How many nodes stand how: each standing, in the order of `STANDINGS`."""
        return _by_standing(item for group in self.groups for item in group.counts.items())

    @cached_property
    def overdue(self) -> int:
        """Return how many nodes are overdue."""
        return sum(n for group in self.groups for n in group.overdue.values())

    @cached_property
    def cloned(self) -> int:
        """Return how many nodes are cloned."""
        return sum(group.cloned for group in self.groups)

    @cached_property
    def causes(self) -> tuple[Cause, ...]:
        """Return why nodes fail, across all groups: the most frequent cause first."""
        found: dict[str, Cause] = {}
        for cause in (cause for group in self.groups for cause in group.causes):
            known = found.get(cause.code)
            found[cause.code] = cause if known is None else _merged(known, cause)
        return tuple(sorted(found.values(), key=lambda cause: (-cause.nodes, cause.code)))


@dataclass(frozen=True)
class GroupGrid:
    """A group's nodes in a fixed order: by their label `site`, then by name."""

    letters: str
    """A letter of `standing.LETTERS` for each node."""
    joined: str
    """Their names, separated by spaces."""

    @cached_property
    def names(self) -> list[str]:
        """Return the names of the nodes, in the order of their letters."""
        return self.joined.split(" ") if self.joined else []


@dataclass(frozen=True)
class FleetGrid:
    """The standing of each node, at one moment: some bytes per node."""

    read_at: datetime
    groups: dict[str, GroupGrid]
    """By name, sorted, including groups without nodes."""
    summary: FleetSummary
    """How many nodes have each standing, at the same moment."""

    def of(self, names: Collection[str] | None) -> "FleetGrid":
        """Return the grid of only these groups; None means all."""
        if names is None:
            return self
        groups = {name: grid for name, grid in self.groups.items() if name in names}
        return replace(self, groups=groups, summary=self.summary.of(names))


class FleetReader:
    """Reads the summary and the grid for everybody who looks on this replica."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._summary = SharedReading(self._read_summary, PERIOD, clock)
        self._grid = SharedReading(self._read_grid, PERIOD, clock)

    async def summary(self) -> FleetSummary:
        """Return how many nodes have each standing, read about `PERIOD` ago.

        Raises: ProblemError, when the database doesn't answer.
        """
        return await self._summary.get()

    async def grid(self) -> FleetGrid:
        """Return each node's standing: 0.6 s of the database's time at 200,000 nodes, 20 ms at 10,000.

        Raises: ProblemError, when the database doesn't answer.
        """
        return await self._grid.get()

    async def both(self) -> tuple[FleetSummary, FleetGrid]:
        """Return the summary and the grid, both from one moment if that is at most `LATE` before the newest summary.

        In a fleet whose cells can be counted by eye, a number thus agrees with the cells beside it.
        """
        summary, grid = await asyncio.gather(self.summary(), self.grid())
        return (summary if summary.read_at - grid.read_at > LATE else grid.summary), grid

    @property
    def last(self) -> FleetSummary | None:
        """Return the last reading of the summary, however old it is; None if there was none."""
        return self._summary.value

    async def stop(self) -> None:
        """Cancel the running reads."""
        await self._summary.stop()
        await self._grid.stop()

    async def _read_summary(self) -> FleetSummary:
        read_at = self._clock.now()

        async def work(conn: Connection) -> FleetSummary:
            return await _count(conn, read_at, await conn.fetch(GROUPS))

        return await self._db.read(work)

    async def _read_grid(self) -> FleetGrid:
        read_at = self._clock.now()

        async def work(conn: Connection) -> FleetGrid:
            groups = await conn.fetch(GROUPS)
            summary = await _count(conn, read_at, groups)
            by_id = {row.group_id: GroupGrid(row.letters, row.names) for row in await conn.fetch(GRID)}
            none = GroupGrid("", "")
            cells = {g.name: by_id.get(g.id, none) for g in sorted(groups, key=lambda g: g.name)}
            return FleetGrid(read_at, cells, summary)

        return await self._db.read(work)


async def _count(conn: Connection, read_at: datetime, groups: list[TargetedGroup]) -> FleetSummary:
    """Return the summary of these groups, in the transaction that read them."""
    counts = await conn.fetch(COUNTS)
    overdue = await conn.fetch(OVERDUE)
    cloned = {row.group_id: row.nodes for row in await conn.fetch(CLONED)}
    failing = [row for row in counts if not row.held and _standing(row) == "failing"]
    failing.sort(key=lambda row: (-row.nodes, row.group_id, row.error_code))
    causes = dict.fromkeys((row.group_id, row.error_code) for row in failing)
    asked = list(causes)[:MOST_CAUSES]
    ids, codes = [group_id for group_id, _ in asked], [code for _, code in asked]
    examples = await conn.fetch(EXAMPLE_NODES, ids, codes, EXAMPLES) if asked else []
    return _summary(read_at, groups, counts, overdue, examples, cloned)


def _standing(row: CountRow, *, held: bool = False) -> Standing:
    return standing(row.state, at_target=row.at_target, error_code=row.error_code, held=held)


def _by_standing(counts: Iterable[tuple[tuple[Standing, int | None], int]]) -> dict[Standing, int]:
    found = dict.fromkeys(STANDINGS, 0)
    for (stands, _), nodes in counts:
        found[stands] += nodes
    return found


def _move(
    counts: dict[tuple[Standing, int | None], int],
    from_: tuple[Standing, int | None],
    to: tuple[Standing, int | None],
    nodes: int,
) -> None:
    """Count nodes as something else."""
    if nodes:
        counts[to] = counts.get(to, 0) + nodes
        counts[from_] -= nodes
        if not counts[from_]:
            del counts[from_]


def _merged(one: Cause, other: Cause) -> Cause:
    """Merge a cause with the same one in other groups; the newer text and time stay."""
    newer = max(one, other, key=lambda cause: (cause.at is not None, cause.at.timestamp() if cause.at else 0.0))
    examples = tuple(sorted((*one.examples, *other.examples)))[:EXAMPLES]
    return replace(newer, groups=one.groups | other.groups, examples=examples)


def _summary(
    read_at: datetime,
    groups: list[TargetedGroup],
    counts: list[CountRow],
    overdue: list[OverdueRow],
    examples: list[ExampleRow],
    cloned: dict[str, int],
) -> FleetSummary:
    failing: dict[tuple[str, str], int] = {}
    by_group: dict[str, dict[tuple[Standing, int | None], int]] = {group.id: {} for group in groups}
    late: dict[str, dict[Standing, int]] = {group.id: {} for group in groups}
    shown: dict[tuple[str, str], list[ExampleRow]] = {}
    known = {group.id: group for group in groups}
    # Held nodes come last, since they take themselves out of what they were counted as.
    for row in sorted(counts, key=lambda row: row.held):
        stands, group = _standing(row), known[row.group_id]
        release = row.runs(group)
        mine = by_group[row.group_id]
        if row.held:
            moved = row.nodes if _standing(row, held=True) == "held" else 0
            _move(mine, (stands, release), ("held", row.restored if release is None else release), moved)
            continue
        mine[stands, release] = mine.get((stands, release), 0) + row.nodes
        if stands == "failing":
            cause = row.group_id, row.error_code
            failing[cause] = failing.get(cause, 0) + row.nodes
    for who in overdue:
        stands = standing(who.state, at_target=who.at_target, error_code="some" if who.has_error else "")
        late[who.group_id][stands] = late[who.group_id].get(stands, 0) + who.nodes
    for example in examples:
        shown.setdefault((example.group_id, example.error_code), []).append(example)
    causes: dict[str, list[Cause]] = {}
    for (group_id, code), nodes in sorted(failing.items(), key=lambda item: (-item[1], item[0])):
        some = sorted(shown.get((group_id, code), []), key=lambda row: row.name)
        newest = max(some, key=lambda row: row.error_at.timestamp() if row.error_at else 0.0, default=None)
        causes.setdefault(group_id, []).append(
            Cause(
                code,
                newest.error_message if newest else "",
                newest.error_at if newest else None,
                {known[group_id].name: nodes},
                tuple(row.name for row in some),
            )
        )
    return FleetSummary(
        read_at,
        tuple(
            GroupSummary(
                g.name, g.release, by_group[g.id], late[g.id], tuple(causes.get(g.id, ())), cloned.get(g.id, 0)
            )
            for g in sorted(groups, key=lambda g: g.name)
        ),
    )
