"""Calls, errors and latency of a function over a while, from what nodes have told with their polls."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from markupsafe import Markup

from control.console import drawings
from control.console.formats import duration, num, rate, share
from control.console.visits import Visit
from control.telemetry import call_history
from control.telemetry.call_history import CallTally

RANGES = {"1h": (timedelta(hours=1), 60), "24h": (timedelta(hours=24), 3600), "7d": (timedelta(days=7), 3600)}
"""How long a while is, and the seconds of each of its points."""
MOST_GROUPS = 20
"""Groups whose calls are read for a page."""
MOST_RELEASES = 20
"""Releases that are told apart: the newest ones of each group first."""


@dataclass
class ReleaseCalls:
    """The calls of a function under a release of a group."""

    group: str
    release: int
    tally: CallTally = field(default_factory=CallTally)

    @property
    def failed(self) -> str:
        """The share of its calls that ended in an error."""
        return share(self.tally.errors, self.tally.calls)


@dataclass(frozen=True)
class CallChart:
    """A figure: what is in its head, a drawing, and the values of its scale."""

    title: str
    head: str
    drawing: Markup
    scale: tuple[str, str, str]
    """At the top, in the middle, at the bottom."""
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
    """Groups whose calls are counted."""

    @property
    def outcomes(self) -> list[tuple[str, int]]:
        """How calls ended that didn't end well: the code and the number, the most frequent ones first."""
        return sorted(self.total.outcomes.items(), key=lambda pair: (-pair[1], pair[0]))[:20]


async def read(visit: Visit, function: str, groups: list[str], span_name: str) -> ChartedCalls:
    """The calls of a function in groups, by name, of one of `RANGES` until now."""
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
