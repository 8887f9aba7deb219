"""The state of the fleet: `GET /v1/fleet`, calls by function: `GET /v1/fleet/calls`, and functions' schedules: `GET
/v1/fleet/schedules`."""

from datetime import datetime, timedelta
from typing import Annotated, Any

from msgspec import Meta, Struct

from control.api.node_views import time_or_none, unknown_group
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import wire
from control.sync.standing import Standing
from control.telemetry import call_history
from control.telemetry.call_history import CallTally, Tallies
from control.telemetry.fleet_summary import GroupSummary
from control.telemetry.recent_calls import MINUTES_SHOWN


class FailingCause(Struct):
    """Why nodes of a group fail."""

    code: str
    text: str
    """The message of one of them."""
    at: datetime | None
    """When that one failed."""
    nodes: int
    """How many nodes fail with it."""
    examples: list[str]
    """Names of some of them."""


class FleetRelease(Struct):
    """A release, on the nodes of its group."""

    release: int
    nodes: int
    """Nodes that run it, which is known of the group's release and the one before."""
    calls: int
    """In the last minutes, like all further fields, as far as nodes have reported."""
    errors: int
    """Calls that ended in an error of the function or of the node."""
    p50: float | None
    """The time that half of the calls didn't exceed, from arrival to end, within 5 %; null without calls."""
    p99: float | None
    outcomes: dict[str, int]
    """How many calls ended with each code; successful calls aren't included."""


class FleetGroup(Struct):
    """The state of a group's nodes; removed ones aren't counted."""

    name: str
    release: int | None
    """The number of the group's release."""
    nodes: int
    standings: dict[Standing, int]
    """How many nodes have each standing."""
    overdue: int
    elsewhere: int
    """Nodes that run neither of the newest two releases, or whose release isn't known."""
    releases: list[FleetRelease]
    """The releases that nodes run or that were called, newest first."""
    failing: list[FailingCause]
    """At most 20, the most frequent causes first."""


class Fleet(Struct):
    read_at: datetime
    """When the nodes were counted."""
    minutes: int
    """For how many minutes calls are counted."""
    groups: list[FleetGroup]


class FunctionCalls(Struct):
    """Calls of a function of a release, on the nodes of a group."""

    group: str
    function: str
    release: int
    calls: int
    errors: int
    p50: float | None
    p99: float | None
    outcomes: dict[str, int]


class FleetCalls(Struct):
    since: datetime
    until: datetime
    calls: list[FunctionCalls]
    """By group, function and release."""


class GroupSchedule(Struct):
    """A line of a function's schedule on the nodes of a group, as those told of it in the last hour."""

    group: str
    function: str
    cron: str
    """Empty for calls after releases."""
    nodes: int
    """Nodes that have it."""
    failing: int
    """Nodes on which its last run failed."""
    example: str | None
    """The name of one of these."""
    last_run_at: datetime | None
    """The newest run of any node; null if there was none."""
    next_run_at: datetime | None
    """The first that is due; null if that isn't known."""
    late_seconds: int
    """By how much the node is late, or was with the last run, that is the latest."""
    failures: int
    """Ticks that failed since the nodes' starts."""


class FleetSchedules(Struct):
    schedules: list[GroupSchedule]
    """By group, function and line."""


LONGEST_OF_ALL = 24 * 60
"""How many past minutes are read at once for all groups: a group has at least 10 KB per hour."""
MOST_FAILING = 20
"""The most causes that are shown of a group: the most frequent ones."""


class FleetFilter(Struct, forbid_unknown_fields=True):
    """Which groups."""

    group: wire.Name | None = None


class CallsFilter(Struct, forbid_unknown_fields=True):
    """Which calls."""

    group: wire.Name | None = None
    function: wire.Name | None = None
    minutes: Annotated[int, Meta(ge=1, le=90 * 24 * 60)] = 60
    """How far back calls are counted; beyond 90 minutes, by whole hours."""


class SchedulesFilter(Struct, forbid_unknown_fields=True):
    """Which schedules."""

    group: wire.Name | None = None
    function: wire.Name | None = None


@operation(
    "GET",
    "/v1/fleet",
    "How many nodes stand how, and how releases do, by group",
    role="read",
    everywhere=False,
    answers={200: Fleet},
    errors=("unknown_group",),
)
async def fleet(call: ApiCall, query: FleetFilter) -> Reply:
    """Show the groups that the operator may see."""
    services, groups = call.services, _groups(call, query.group)
    summary = (await services.standings.summary()).of(groups)
    if query.group is not None and not summary.groups:
        raise unknown_group(query.group)
    recent = await services.recent_calls.get()
    return Reply(
        200,
        Fleet(
            read_at=summary.read_at,
            minutes=MINUTES_SHOWN,
            groups=[_group(group, recent.groups.get(group.name, {})) for group in summary.groups],
        ),
    )


@operation(
    "GET",
    "/v1/fleet/calls",
    "Calls of the last minutes by group, function and release",
    role="read",
    everywhere=False,
    answers={200: FleetCalls},
    errors=("unknown_group",),
)
async def calls(call: ApiCall, query: CallsFilter) -> Reply:
    """Show calls in the groups that the operator may see."""
    services = call.services
    if query.group is None and query.minutes > LONGEST_OF_ALL:
        raise ProblemError(
            "invalid_parameter",
            f"without a group, {LONGEST_OF_ALL} minutes are the most; name a group for up to 90 days",
            field="minutes",
        )
    wanted = _groups(call, query.group)
    if query.group is not None and not (await services.standings.summary()).of(wanted).groups:
        raise unknown_group(query.group)
    # A group that this replica doesn't know has no nodes and no calls.
    names = {id: g.name for id, g in services.fleet.groups.items() if wanted is None or g.name in wanted}
    now = services.clock.now()
    since = now.replace(second=0, microsecond=0) - timedelta(minutes=query.minutes - 1)
    numbers = services.numbers
    spans = await call_history.read(
        services.databases.lists,
        names,
        since,
        now + timedelta(minutes=1),
        numbers.unwritten(),
        numbers.replica,
        query.function or "",
    )
    found: dict[str, Tallies] = {}
    for span in spans:
        call_history.add_tallies(found.setdefault(names[span.group_id], {}), span.counted)
    listed = [
        FunctionCalls(group, function, release, **_numbers(tally))
        for group, counted in sorted(found.items())
        for (function, release), tally in sorted(counted.items(), key=lambda item: item[0])
    ]
    begins = min((span.begins for span in spans), default=since)
    return Reply(200, FleetCalls(since=min(begins, since), until=now, calls=listed))


@operation(
    "GET",
    "/v1/fleet/schedules",
    "When functions started by themselves last, and start next, by group",
    role="read",
    everywhere=False,
    answers={200: FleetSchedules},
    errors=("unknown_group",),
)
async def schedules(call: ApiCall, query: SchedulesFilter) -> Reply:
    """Show schedules in the groups that the operator may see."""
    wanted = _groups(call, query.group)
    if query.group is not None and not (await call.services.standings.summary()).of(wanted).groups:
        raise unknown_group(query.group)
    found = [
        GroupSchedule(
            line.group_name,
            line.function,
            line.cron,
            line.nodes,
            line.failing,
            line.example,
            time_or_none(line.last_run),
            time_or_none(line.next_run),
            line.late,
            line.failures,
        )
        for line in await call.services.schedules.get()
        if (wanted is None or line.group_name in wanted) and query.function in (None, line.function)
    ]
    return Reply(200, FleetSchedules(found))


def _groups(call: ApiCall, group: str | None) -> list[str] | None:
    """Return the names of the groups to show; None: all. Raises: ProblemError, when the operator may not see one."""
    if group is None:
        return call.operator.rights.groups("read")
    if not call.operator.rights.allows("read", group):
        raise unknown_group(group)
    return [group]


def _group(group: GroupSummary, calls: dict[int, CallTally]) -> FleetGroup:
    nodes: dict[int | None, int] = {}
    for (_, release), count in group.counts.items():
        nodes[release] = nodes.get(release, 0) + count
    numbers = sorted({*(n for n in nodes if n is not None), *calls}, reverse=True)
    releases = [FleetRelease(n, nodes.get(n, 0), **_numbers(calls.get(n, CallTally()))) for n in numbers]
    return FleetGroup(
        name=group.name,
        release=group.release,
        nodes=group.nodes,
        standings=dict(group.standings),
        overdue=sum(group.overdue.values()),
        elsewhere=nodes.get(None, 0),
        releases=releases,
        failing=[
            FailingCause(cause.code, cause.text, cause.at, cause.nodes, list(cause.examples))
            for cause in group.causes[:MOST_FAILING]
        ],
    )


def _numbers(tally: CallTally) -> dict[str, Any]:
    return {
        "calls": tally.calls,
        "errors": tally.errors,
        "p50": tally.quantile(0.5),
        "p99": tally.quantile(0.99),
        "outcomes": dict(sorted(tally.outcomes.items())),
    }
