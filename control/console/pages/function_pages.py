"""Functions: the list, and one function: its calls, its versions and their permissions, and its groups."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec
from markupsafe import Markup

from control import manifest_rules
from control.api import functions, pagination
from control.api.fleet import FleetSchedules, GroupSchedule, SchedulesFilter, schedules
from control.api.functions import DetailedFunction, Function, Version
from control.api.operations import Reply
from control.console import drawings
from control.console.formats import duration, num, rate, share
from control.console.pages.page_input import path_of
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError
from control.protocol.manifest import Manifest
from control.telemetry import call_history, recent_calls
from control.telemetry.call_history import CallTally

SHOWN = 50
"""Functions per page of the list."""
VERSIONS = 20
"""Versions per page of a function."""
MANIFEST = 20_000
"""Characters of a manifest that are shown."""
RANGES = {"1h": (timedelta(hours=1), 60), "24h": (timedelta(hours=24), 3600), "7d": (timedelta(days=7), 3600)}
"""The length of each range, and the seconds of each of its points."""
MOST_GROUPS = 20
"""Maximum groups whose calls are read for a page."""
MOST_RELEASES = 20
"""Maximum releases that are shown separately: the newest of each group first."""


@dataclass
class ReleaseCalls:
    """The calls of a function in one release of a group."""

    group: str
    release: int
    tally: CallTally = field(default_factory=CallTally)

    @property
    def failed(self) -> str:
        """The share of its calls that ended in an error."""
        return share(self.tally.errors, self.tally.calls)


@dataclass(frozen=True)
class CallChart:
    """A chart: its heading, a drawing, and the values of its scale."""

    title: str
    head: str
    drawing: Markup
    scale: tuple[str, str, str]
    """The values at the top, in the middle, and at the bottom."""
    note: str


@dataclass(frozen=True)
class ChartedCalls:
    """What a function's page shows of its calls."""

    total: CallTally
    charts: list[CallChart]
    releases: list[ReleaseCalls]
    since: datetime
    until: datetime
    groups: int
    """Number of groups whose calls are counted."""

    @property
    def outcomes(self) -> list[tuple[str, int]]:
        """How failed calls ended: code and count, the most frequent first."""
        return sorted(self.total.outcomes.items(), key=lambda pair: (-pair[1], pair[0]))[:20]


async def show_list(visit: Visit) -> Reply:
    """GET /functions"""
    query = pagination.Paging(visit.query.get("cursor") or None, SHOWN)
    found, next = await visit.items(functions.list_functions, Function, query)
    calls = await _recent(visit)
    return await visit.html("functions.html", found=found, next=next, calls=calls, minutes=recent_calls.MINUTES_SHOWN)


async def _recent(visit: Visit) -> dict[str, CallTally]:
    """Return the calls of the last minutes by function, in the groups that the operator may see."""
    groups = visit.rights.groups("read")
    found: dict[str, CallTally] = {}
    for group, by_function in (await visit.services.recent_calls.get()).functions.items():
        if groups is None or group in groups:
            for function, tally in by_function.items():
                found.setdefault(function, CallTally()).add(tally.outcomes, tally.times)
    return found


async def show_one(visit: Visit) -> Reply:
    """GET /functions/{name}?range=&version=: its calls, its newest versions, and the manifest of one."""
    path = path_of(visit)
    function: DetailedFunction = await visit.ask(functions.get_function, path)
    query = pagination.Paging(visit.query.get("cursor") or None, VERSIONS)
    found, further = await visit.items(functions.list_versions, Version, query, path)
    wanted = visit.query.get("version", "")
    chosen = None
    if wanted:
        chosen = next((v for v in found if str(v.version) == wanted), None) or await _version(
            visit, function.name, wanted
        )
    elif found and not visit.query.get("cursor"):
        chosen = found[0]
    fleet = await visit.fleet()
    chosen_range = visit.query.get("range", "1h")
    if chosen_range not in RANGES:
        raise ProblemError("invalid_parameter", f"a range is one of {', '.join(RANGES)}", field="range")
    calls = await _charted(visit, function.name, [target.group for target in function.targets], chosen_range)
    by_version: dict[int, list[str]] = {}
    for target in function.targets:
        by_version.setdefault(target.version, []).append(target.group)
    return await visit.html(
        "function.html",
        function=function,
        versions=[(version, _may(version.manifest), by_version.get(version.version, [])) for version in found],
        next=further,
        chosen=chosen,
        manifest=_shown(chosen.manifest) if chosen else "",
        calls=calls,
        chosen_range=chosen_range,
        ranges=tuple(RANGES),
        standings={group.name: group for group in fleet.groups} if fleet else {},
        schedules=await _schedules(visit, function.name),
    )


async def _schedules(visit: Visit, function: str) -> list[GroupSchedule]:
    """Return the lines of a function's schedule on nodes, those that failed first."""
    found: FleetSchedules = await visit.ask(schedules, query=SchedulesFilter(function=function))
    return sorted(found.schedules, key=lambda line: (not line.failing, -line.late_seconds))


def _may(manifest: Manifest) -> str:
    """Return the permissions of a version, in words."""
    stored = msgspec.json.decode(msgspec.json.encode(manifest))
    return "; ".join(f"{grant} {text}" for grant, text in manifest_rules.grants(stored).items())


async def _version(visit: Visit, name: str, wanted: str) -> Version:
    if not wanted.isdecimal() or not wanted.isascii() or len(wanted) > 10:
        raise ProblemError("invalid_parameter", f"{wanted[:50]} is no version's number", field="version")
    found = await visit.ask(functions.get_version, {"name": name, "version": int(wanted)})
    # The manifest is stored as JSON.
    return msgspec.json.decode(msgspec.json.encode(found), type=Version)


def _shown(manifest: Manifest) -> str:
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode()
    return text if len(text) <= MANIFEST else f"{text[:MANIFEST]}\n… and {len(text) - MANIFEST} characters more"


async def _charted(visit: Visit, function: str, groups: list[str], span_name: str) -> ChartedCalls:
    """Return the calls of a function in these groups, by name, for one of `RANGES` until now."""
    length, step = RANGES[span_name]
    services = visit.services
    until = visit.now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    if step == 3600:
        until = (until + timedelta(minutes=59)).replace(minute=0)
    since = until - length
    wanted = set(groups[:MOST_GROUPS])
    names = {group.id: group.name for group in services.fleet.groups.values() if group.name in wanted}
    numbers = services.numbers
    spans = await call_history.read(
        services.databases.lists, set(names), since, until, numbers.unwritten(), numbers.replica, function
    )
    points = [CallTally() for _ in range(int(length.total_seconds()) // step)]
    releases: dict[tuple[str, int], ReleaseCalls] = {}
    total = CallTally()
    for span in spans:
        at = int((span.begins - since).total_seconds()) // step
        for (_, release), tally in span.counted.items():
            key = names[span.group_id], release
            for counted in (total, releases.setdefault(key, ReleaseCalls(*key)).tally, *points[max(0, at) : at + 1]):
                counted.add(tally.outcomes, tally.times)
    shown = sorted(releases.values(), key=lambda one: (-one.release, one.group))[:MOST_RELEASES]
    return ChartedCalls(total, _charts(points, step), shown, since, until, len(names))


def _charts(points: list[CallTally], step: int) -> list[CallChart]:
    calls = [point.calls * 60 / step for point in points]
    failed = [point.errors / point.calls * 100 if point.calls else 0.0 for point in points]
    slow, middle = ([point.quantile(q) or 0.0 for point in points] for q in (0.99, 0.5))
    most, worst, slowest = max(calls), max(failed), max(slow)
    total, errors = sum(point.calls for point in points), sum(point.errors for point in points)
    seconds = len(points) * step
    said = "no calls" if not total else f"{rate(min(calls))} to {rate(most)} calls a minute"
    return [
        CallChart(
            "Calls",
            f"{rate(total * 60 / seconds)} a minute",
            drawings.plot([(calls, "")], said, top=most or 1.0),
            (rate(most), rate(most / 2), "0") if most else ("", "", "0"),
            f"{num(total)} in all",
        ),
        CallChart(
            "Failed",
            share(errors, total),
            drawings.plot([(failed, "ln--fail")], f"{worst:.2g} per cent of calls failed at most", top=worst or 1.0),
            (f"{worst:.2g} %", f"{worst / 2:.2g}", "0") if worst else ("", "", "0"),
            f"{num(errors)} of {num(total)} calls",
        ),
        CallChart(
            "Latency",
            "p50 and p99",
            drawings.plot([(slow, ""), (middle, "ln--2")], f"p99 {duration(slowest)} at most", top=slowest or 1.0),
            (duration(slowest), duration(slowest / 2), "0") if slowest else ("", "", "0"),
            "line: p99, dashes: p50",
        ),
    ]


PAGES = (ConsolePage("GET", "/functions", show_list), ConsolePage("GET", "/functions/{name}", show_one))
