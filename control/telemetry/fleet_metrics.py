"""The fleet's metrics for Prometheus: nodes' standings, calls by function and release, nodes' reports on themselves.

Every replica has the same gauges, and its own counters, for the nodes that report to it. No metric has a node's name.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from control.clock import Clock
from control.problems import ProblemError
from control.protocol import histogram
from control.sync.fleet_cache import FleetCache
from control.telemetry.call_history import CallTally
from control.telemetry.fleet_summary import FleetReader, FleetSummary
from control.telemetry.ingest import NumbersIngest
from control.telemetry.node_health import Events, GroupToldRow
from control.telemetry.shared_reading import SharedReading

PATIENCE = 3.0
"""Seconds that a scrape waits for the database; what it can't read by then is left out."""
TOLD_EVERY = 15.0
"""Seconds between two reads of nodes' reports on themselves."""
MOST_CODES, MOST_VERSIONS = 50, 20
"""The most failure codes of a group, and versions of the edge, with their own series: nodes may send any number."""
_BOUNDS = (*map(str, histogram.FOLDED), "+Inf")
_MIDDLES = tuple(histogram.middle(index) for index in range(histogram.LONGER + 1))
"""By bucket of `histogram`: the seconds that each of its calls is assumed to have taken."""


class GroupCalls(NamedTuple):
    """Calls of a group since the replica's start: those of past minutes, and of the current one."""

    group: str
    over: Mapping[tuple[str, int], CallTally]
    current: Mapping[tuple[str, int], CallTally]


class FleetMetrics:
    """Makes the text for each scrape."""

    def __init__(
        self,
        standings: FleetReader,
        numbers: NumbersIngest,
        fleet: FleetCache,
        clock: Clock,
        more: Sequence[Callable[[], Awaitable[str]]] = (),
    ) -> None:
        """`more` returns other metrics that are read from the database."""
        self._clock = clock
        self._standings = standings
        self._numbers = numbers
        self._fleet = fleet
        self._more = more
        self._told = SharedReading(numbers.nodes.of_groups, TOLD_EVERY, clock)

    async def render(self) -> bytes:
        """Return the metrics as text, without those that the database doesn't return in time."""
        names = {id: group.name for id, group in self._fleet.groups.items()}
        texts = []
        try:
            async with self._clock.timeout(PATIENCE):
                texts.append(standings(await self._standings.summary()))
                texts.append(told(await self._told.get(), names))
                for each in self._more:
                    texts.append(await each())
        except (TimeoutError, ProblemError):
            pass
        ingested = self._numbers
        texts.append(events(ingested.nodes.events, names))
        texts.append(numbers_taken(ingested.taken, ingested.again, ingested.refused))
        outcomes, seconds = [], []
        for group_id in ingested.groups():
            if group_id in names:
                calls = GroupCalls(names[group_id], *ingested.totals(group_id))
                outcomes.append(call_outcomes(calls))
                seconds.append(call_seconds(calls))
                await asyncio.sleep(0)
        texts += calls_text(outcomes, seconds)
        return "".join(texts).encode()

    async def stop(self) -> None:
        """Cancel the running read."""
        await self._told.stop()


def standings(summary: FleetSummary) -> str:
    """Return how many nodes have each standing."""
    nodes: list[tuple[str, float]] = []
    failing: list[tuple[str, float]] = []
    overdue: list[tuple[str, float]] = []
    cloned: list[tuple[str, float]] = []
    releases: list[tuple[str, float]] = []
    for group in summary.groups:
        cloned.append((labels(group=group.name), group.cloned))
        releases.append((labels(group=group.name), group.release or 0))
        overdue.append((labels(group=group.name), sum(group.overdue.values())))
        at_rest: dict[tuple[str, int | None], int] = {(stands, group.release): 0 for stands in group.standings}
        for (stands, release), count in (at_rest | group.counts).items():
            of = labels(group=group.name, standing=stands, release="" if release is None else str(release))
            nodes.append((of, count))
        others = sum(cause.nodes for cause in group.causes[MOST_CODES:])
        failing += [(labels(group=group.name, code=cause.code), cause.nodes) for cause in group.causes[:MOST_CODES]]
        failing += [(labels(group=group.name, code="others"), others)] if others else []
    return (
        family(
            "skerry_nodes",
            "gauge",
            "Nodes by group, standing and the release that they run, which is empty where it is not known",
            nodes,
        )
        + family("skerry_failing_nodes", "gauge", "Nodes whose last sync failed, by the code of the error", failing)
        + family("skerry_overdue_nodes", "gauge", "Nodes that weren't confirmed at their target for a while", overdue)
        + family("skerry_cloned_nodes", "gauge", "Nodes as which two processes poll in turn", cloned)
        + family("skerry_group_release", "gauge", "Number of the release that a group has, 0 without one", releases)
    )


def told(rows: Iterable[GroupToldRow], names: Mapping[str, str]) -> str:
    """Return nodes' recent reports on themselves."""
    by_group: dict[str, list[GroupToldRow]] = {}
    for row in rows:
        if row.group_id in names:
            by_group.setdefault(names[row.group_id], []).append(row)
    versions: dict[str, int] = {}
    for row in (row for found in by_group.values() for row in found):
        versions[row.edge] = versions.get(row.edge, 0) + row.nodes
    apart = set(sorted(versions, key=lambda edge: (-versions[edge], edge))[:MOST_VERSIONS])
    groups = [(labels(group=name), found) for name, found in sorted(by_group.items())]
    of_versions: dict[str, float] = {}
    for name, found in sorted(by_group.items()):
        for row in found:
            of = labels(group=name, version=row.edge if row.edge in apart else "others")
            of_versions[of] = of_versions.get(of, 0) + row.nodes

    def least(ends: Iterable[int]) -> int:
        return min((end for end in ends if end), default=0)

    certificates = [(of, least(row.certificate_ends_min for row in found)) for of, found in groups]
    credentials = [(of, least(row.credential_ends_min for row in found)) for of, found in groups]
    trusts = [(of, least(row.trust_ends_min for row in found)) for of, found in groups]
    return (
        family(
            "skerry_group_nodes",
            "gauge",
            "Nodes that told of themselves in the last hour, by group and version of the edge",
            of_versions.items(),
        )
        + family(
            "skerry_group_database_bytes",
            "gauge",
            "Size of all database files of a group's nodes",
            [(of, sum(row.database_sum for row in found)) for of, found in groups],
        )
        + family(
            "skerry_group_largest_database_bytes",
            "gauge",
            "Size of the largest database file of a group's nodes",
            [(of, max(row.database_max for row in found)) for of, found in groups],
        )
        + family(
            "skerry_group_largest_wal_bytes",
            "gauge",
            "Size of the longest write-ahead log of a group's nodes",
            [(of, max(row.wal_max for row in found)) for of, found in groups],
        )
        + family(
            "skerry_group_least_disk_free_bytes",
            "gauge",
            "What is free on the fullest disk of a group's nodes",
            [(of, min(row.disk_free_min for row in found)) for of, found in groups],
        )
        + family(
            "skerry_group_memory_bytes",
            "gauge",
            "Memory of all processes of a group's nodes",
            [(of, sum(row.memory_sum for row in found)) for of, found in groups],
        )
        + family(
            "skerry_group_certificate_expiry_timestamp_seconds",
            "gauge",
            "When the first certificate of a group's nodes ends, of their local HTTPS",
            [(of, end) for of, end in certificates if end],
        )
        + family(
            "skerry_group_credential_expiry_timestamp_seconds",
            "gauge",
            "When the first credential of a group's nodes ends",
            [(of, end) for of, end in credentials if end],
        )
        + family(
            "skerry_group_trust_expiry_timestamp_seconds",
            "gauge",
            "When the first of a group's nodes trusts no CA of control's any more",
            [(of, end) for of, end in trusts if end],
        )
    )


def events(by_group: Mapping[str, Events], names: Mapping[str, str]) -> str:
    """Return what happened on nodes."""
    found = [(labels(group=names[id]), counted) for id, counted in by_group.items() if id in names]
    return (
        family(
            "skerry_group_worker_deaths",
            "counter",
            "Workers of a group's nodes that ended, for whatever reason",
            [(of, counted.worker_deaths) for of, counted in found],
        )
        + family(
            "skerry_group_log_dropped",
            "counter",
            "Lines of the logs of a group's nodes that were dropped",
            [(of, counted.log_dropped) for of, counted in found],
        )
        + family(
            "skerry_group_failed_syncs",
            "counter",
            "Syncs that failed, as a group's nodes count them",
            [(of, counted.failed_syncs) for of, counted in found],
        )
    )


def numbers_taken(taken: int, again: int, refused: int) -> str:
    """Return what became of nodes' numbers."""
    results = (("taken", taken), ("again", again), ("refused", refused))
    return family(
        "skerry_node_numbers",
        "counter",
        "Numbers that nodes told with polls: taken, known already (again), or refused, wholly or in part",
        [(labels(result=result), count) for result, count in results],
    )


def call_outcomes(calls: GroupCalls) -> str:
    """Return the samples of how a group's calls ended."""
    lines = []
    for of, tallies in _series(calls):
        outcomes: dict[str, int] = {}
        total = 0
        for tally in tallies:
            total += tally.calls
            for code, count in tally.outcomes.items():
                outcomes[code] = outcomes.get(code, 0) + count
        well = total - sum(outcomes.values())
        for code, count in (("ok", well), *outcomes.items()):
            lines.append(f'skerry_function_calls_total{{{of},outcome="{code}"}} {count}\n')
    return "".join(lines)


def call_seconds(calls: GroupCalls) -> str:
    """Return the samples of how long a group's calls took."""
    lines = []
    for of, tallies in _series(calls):
        counts = [sum(each) for each in zip(*(histogram.fold(tally.times) for tally in tallies), strict=True)]
        for bound, count in zip(_BOUNDS, counts, strict=True):
            lines.append(f'skerry_function_seconds_bucket{{{of},le="{bound}"}} {count}\n')
        total = sum(count * _MIDDLES[index] for tally in tallies for index, count in tally.times.items())
        lines.append(
            f"skerry_function_seconds_sum{{{of}}} {total}\nskerry_function_seconds_count{{{of}}} {counts[-1]}\n"
        )
    return "".join(lines)


def calls_text(outcomes: list[str], seconds: list[str]) -> list[str]:
    """Return the samples of all groups, below the heads of their metrics."""
    if not outcomes:
        return []
    return [
        head(
            "skerry_function_calls_total",
            "counter",
            "Calls on nodes by group, function, release (the newest two) and how they ended",
        ),
        *outcomes,
        head(
            "skerry_function_seconds",
            "histogram",
            "Time of calls on nodes, from their arrival to their end; the sum is within 5 percent",
        ),
        *seconds,
    ]


def _series(calls: GroupCalls) -> Iterable[tuple[str, list[CallTally]]]:
    """Yield labels and counts of each function of a group, for its two newest releases."""
    keys = dict.fromkeys((*calls.over, *calls.current))
    newest = sorted({release for _, release in keys})[-2:]
    for function, release in keys:
        if release in newest:
            found = (calls.over.get((function, release)), calls.current.get((function, release)))
            of = labels(group=calls.group, function=function, release=str(release))
            yield of, [tally for tally in found if tally is not None]


# Prometheus' text format, written by hand: its client library takes ten times as long for many series.


def labels(**values: str) -> str:
    """Return labels in the text format, whatever their values: ``group="shops",code="disk_full"``."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def family(name: str, kind: str, about: str, samples: Iterable[tuple[str, float]]) -> str:
    """Return a metric of the kind `gauge` or `counter`, with its samples' labels and values; '' without samples.

    A counter's name has no `_total`.
    """
    suffix = "_total" if kind == "counter" else ""
    lines = [f"{name}{suffix}{{{of}}} {value}\n" if of else f"{name}{suffix} {value}\n" for of, value in samples]
    return head(f"{name}{suffix}", kind, about) + "".join(lines) if lines else ""


def head(name: str, kind: str, about: str) -> str:
    """Return the lines above a metric's samples."""
    return f"# HELP {name} {about}\n# TYPE {name} {kind}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
