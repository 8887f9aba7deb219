"""Bodies of answers about the whole fleet. Times are RFC 3339 in UTC, durations are in seconds; null: not known."""

from datetime import datetime

from msgspec import Struct

from control.sync.standing import Standing


class FailingCause(Struct):
    """Why nodes of a group fail."""

    code: str
    text: str
    """The message of one of them."""
    at: datetime | None
    """When that one failed."""
    nodes: int
    """How many nodes fail so."""
    examples: list[str]
    """Names of some of them."""


class FleetRelease(Struct):
    """A release, on the nodes of its group."""

    release: int
    nodes: int
    """Nodes that run it, as far as that is known: of the group's release and the one before."""
    calls: int
    """In the last minutes, as is all that follows; what nodes told so far."""
    errors: int
    """Calls that ended in an error of the function or of the node."""
    p50: float | None
    """The time that half of the calls didn't exceed, from arrival to end, within 5 %; null without calls."""
    p99: float | None
    outcomes: dict[str, int]
    """How many calls ended so, by the code; those that ended well aren't there."""


class FleetGroup(Struct):
    """How the nodes of a group are; removed ones aren't counted."""

    name: str
    release: int | None
    """The number of the group's release."""
    nodes: int
    standings: dict[Standing, int]
    """How many nodes stand how."""
    overdue: int
    elsewhere: int
    """Nodes that run neither of the newest two releases, or of which it isn't known what they run."""
    releases: list[FleetRelease]
    """Those that nodes run or that were called, the newest first."""
    failing: list[FailingCause]
    """The most frequent causes first, 20 at most."""


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


class OtherTrust(Struct):
    """A node that doesn't trust the CAs that control gives out now."""

    name: str
    state: str
    trust: str
    """The digest of those that it trusts, `system` for those of its system, '' where it hasn't said."""
    told_at: datetime | None


class NodesTrust(Struct):
    """Which nodes trust the CAs that the replica which answers gives out."""

    trust: str
    """The digest of these CAs; '' where it has none to give out."""
    nodes: int
    have: int
    lacking: list[OtherTrust]
    """By name, 1,000 at most."""


class RunningReplica(Struct):
    """A replica of control that runs."""

    id: str
    """Of this run: when it is started again, it has another one."""
    version: str | None
    """As `skerry --version` has number and commit, with a `+` between them; null where it is too old to tell it."""
    answers: bool
    """Whether it is the one that answers."""
