"""The policy of a rollout, as an operator writes it, and as the values that it means.

The words are those of Argo Rollouts, Flagger and hawkBit where they have one (docs/how-to/roll-out-in-steps.md).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Meta
from msgspec import field as body_field

from control.problems import ProblemError
from control.protocol.wire import Body, LabelKey, Name

T = TypeVar("T")
Word = Annotated[str, Meta(max_length=64)]
Role = Literal["push", "deploy", "admin"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = timedelta(days=90)
"""The longest duration in a policy."""
NO_FACTOR, NO_TIME = "no factor such as 1.2x", "no time such as 50ms or 2s"
DAY = 24 * 60
"""Minutes."""
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DURATION = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")
_COUNT = re.compile(r"0|[1-9][0-9]{0,6}")
_WINDOW = re.compile(r"([A-Za-z]{3})(?:-([A-Za-z]{3}))? ([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2}) ([A-Z]\S{0,63})")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00")
_FACTOR = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)x")
_TIME = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s)")


class StepTable(Body, frozen=True, omit_defaults=True):
    """A step with more than a share."""

    until: Word | None = None
    """Start nodes until so many have begun: a number, such as `1`, or a share of the group, such as `5%`."""
    pause: Word | None = None
    """Wait after that: a duration, such as `2h`, or `approval`, until somebody promotes the rollout."""
    role: Role = "deploy"
    """The least role of the operator who approves."""


class Gate(Body, frozen=True, omit_defaults=True):
    """What must be so for a step to end. Its answer is passed, failed or unknown."""

    metric: Literal["error_ratio", "p99"] | None = None
    """`error_ratio`, the share of calls that failed, or `p99`, the time that 99 % of the calls didn't exceed."""
    function: Name | None = None
    """Only this function's calls; of all functions, if not given."""
    than_before: Word | None = None
    """The most times what the same nodes had in the hour before they flipped, such as `1.2x`."""
    at_most: Word | None = None
    """The most that it may be: a share for `error_ratio`, such as `0.5%`, a time for `p99`, such as `50ms`."""
    at_least_calls: Annotated[int, Meta(ge=1, le=10**9)] = 100
    """Calls in this step, of all its nodes together, below which the answer is unknown."""
    webhook: Annotated[str, Meta(max_length=2000)] | None = None
    """In place of a metric: a URL that is asked (POST). 2xx: passed; 4xx: failed; everything else: unknown."""


class Policy(Body, frozen=True, omit_defaults=True):
    """How a release goes out: the table `[rollout]`."""

    steps: Annotated[list[Word | StepTable], Meta(min_length=1, max_length=50)] = body_field(
        default_factory=lambda: list[str | StepTable](["100%"])
    )
    """The steps in order; each is a number or share of nodes, or a table. The last one is `100%`."""
    bake: Word = "10m"
    """How long a step goes on after its last node's flip, at least."""
    max_failed: Word = "0%"
    """The most nodes that may fail in a step: a share of those that it has started, rounded down, or a number."""
    on_failure: Literal["pause", "rollback"] = "pause"
    """What happens when too many nodes fail, or a gate does."""
    on_unknown: Literal["pause", "rollback"] = "pause"
    """What happens when a step's time, with its pause, is over and a gate's answer is unknown. `pause` waits for an
    answer."""
    unknown_after: Word = "24h"
    """After how long somebody is told again that the rollout waits for an answer."""
    window: Word | None = None
    """When nodes may be started, such as `Mon-Fri 22:00-05:00 Europe/Lisbon`; at any time, if not given. It begins on
    these days, goes by the clocks there, and may end on the next day, or at 24:00."""
    spread_by: LabelKey | None = None
    """A label over whose values each step's nodes are spread evenly; nodes without it are spread as one more value."""
    rehearse: bool = True
    """Have every online node try the release on a copy of its own data first."""
    rehearsal_time: Word = "10m"
    """How long nodes may take for that."""
    max_unknown: Word = "100%"
    """The most nodes on which the rehearsal's outcome may be unknown, as it is on offline ones: a share, rounded down,
    or a number. Where nodes could try it, one at least must pass."""
    gate: Annotated[list[Gate], Meta(max_length=20)] = body_field(default_factory=list)
    """What must be so for each step to end, besides its nodes."""


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of nodes, or a share of them."""

    count: int | None
    share: Fraction

    def up(self, nodes: int) -> int:
        """Return the number of nodes out of `nodes`, rounded up."""
        return min(nodes, ceil(self.share * nodes) if self.count is None else self.count)

    def down(self, nodes: int) -> int:
        """Return the number of nodes out of `nodes`, rounded down."""
        return min(nodes, floor(self.share * nodes) if self.count is None else self.count)


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """A step: it starts nodes until `until`, if given, and then waits for `pause`, if given, or for an approval."""

    until: Amount | None
    text: str
    """As it was written."""
    pause: timedelta | None
    approval: bool
    role: Role

    @property
    def whole(self) -> bool:
        """Whether it starts all nodes."""
        return self.until is not None and self.until.share == 1


@dataclass(frozen=True, slots=True)
class Window:
    """The times of a week at which nodes may be started, by the clocks of a time zone. It may go past midnight.

    Where clocks are put forward over a part of it, that part is missing; where they are put back, it comes twice.
    """

    days: frozenset[int]
    """Days on which it begins; 0 is Monday."""
    begins: int
    """Minutes since midnight."""
    ends: int
    """Minutes since midnight, up to 1440, when it isn't open any more; not after `begins`: on the next day."""
    zone: ZoneInfo | None
    """None on a machine that doesn't know it, where it is never open."""

    def open(self, now: datetime) -> bool:
        """Return whether it is open at `now`."""
        if self.zone is None:
            return False
        local = now.astimezone(self.zone)
        day, at = local.weekday(), local.hour * 60 + local.minute
        if self.begins < self.ends:
            return day in self.days and self.begins <= at < self.ends
        return (day in self.days and at >= self.begins) or ((day - 1) % 7 in self.days and at < self.ends)


@dataclass(frozen=True, slots=True)
class GateLimit:
    """What a gate allows: so many times what was before, at most so much, or both."""

    factor: float | None
    most: float | None
    """A share, or seconds."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a policy means."""

    steps: tuple[PolicyStep, ...]
    bake: timedelta
    max_failed: Amount
    on_failure: Literal["pause", "rollback"]
    on_unknown: Literal["pause", "rollback"]
    unknown_after: timedelta
    window: Window | None
    spread_by: str | None
    rehearse: bool
    rehearsal_time: timedelta
    max_unknown: Amount
    gates: tuple[Gate, ...]

    def measures(self, step: int) -> bool:
        """Return whether gates are measured in a step (from 1): it or an earlier one starts nodes."""
        return any(each.until is not None for each in self.steps[:step])


AT_ONCE = Policy(bake="0s", max_failed="100%")
"""The policy of a group without one, whose release changes the schema: a rehearsal, and then all nodes at once, and
none is held back by another."""


def rules_of(policy: Policy, *, accepted: bool = False) -> Rules:
    """Return what a policy means.

    One that was `accepted` before, perhaps by another machine of control, may name a time zone that this one doesn't
    know: so its rollout can still be aborted. What one version accepts, later ones must read.

    Raises: ProblemError invalid_policy, which names the field that is wrong.
    """
    steps = tuple(_step(f"steps[{at}]", step) for at, step in enumerate(policy.steps))
    most_nodes, most_share = 0, Fraction(0)
    for at, step in enumerate(steps):
        if step.until is None:
            continue
        if step.until.share < most_share if step.until.count is None else step.until.count < most_nodes:
            raise _wrong(f"steps[{at}]", step.text, "less than an earlier step has")
        most_nodes, most_share = max(most_nodes, step.until.count or 0), max(most_share, step.until.share)
    if not steps[-1].whole:
        raise _wrong(f"steps[{len(steps) - 1}]", steps[-1].text, "not 100%, which the last step must be")
    for at, gate in enumerate(policy.gate):
        limit_of(gate, f"gate[{at}]")
        if not accepted:
            _check_new(gate, policy.gate[:at], f"gate[{at}]")
    return Rules(
        steps=steps,
        bake=_duration("bake", policy.bake),
        max_failed=_amount("max_failed", policy.max_failed),
        on_failure=policy.on_failure,
        on_unknown=policy.on_unknown,
        unknown_after=_duration("unknown_after", policy.unknown_after, least=timedelta(minutes=1)),
        window=None if policy.window is None else _window("window", policy.window, accepted=accepted),
        spread_by=policy.spread_by,
        rehearse=policy.rehearse,
        rehearsal_time=_duration("rehearsal_time", policy.rehearsal_time, least=timedelta(seconds=1)),
        max_unknown=_amount("max_unknown", policy.max_unknown),
        gates=tuple(policy.gate),
    )


def limit_of(gate: Gate, field: str = "gate") -> GateLimit:
    """Return what a gate with a metric allows; nothing for one with a webhook. Raises: ProblemError invalid_policy."""
    if (gate.metric is None) == (gate.webhook is None):
        raise ProblemError("invalid_policy", "a gate has either a metric or a webhook", field=f"{field}.metric")
    if gate.webhook is not None:
        if not _is_url(gate.webhook):
            raise _wrong(f"{field}.webhook", gate.webhook, "no URL such as https://checks.example/ready")
        for name in ("function", "than_before", "at_most"):
            if getattr(gate, name) is not None:
                raise ProblemError(
                    "invalid_policy", f"a webhook judges by itself, without {name}", field=f"{field}.{name}"
                )
        return GateLimit(None, None)
    if gate.than_before is None and gate.at_most is None:
        raise ProblemError("invalid_policy", "a metric needs than_before, at_most or both", field=f"{field}.at_most")
    factor = most = None
    if gate.than_before is not None:
        factor = _parsed(f"{field}.than_before", gate.than_before, _FACTOR, lambda found: float(found[1]), NO_FACTOR)
        if factor == 0:
            raise _wrong(f"{field}.than_before", gate.than_before, NO_FACTOR)
    if gate.at_most is not None and gate.metric == "error_ratio":
        most = float(_share(f"{field}.at_most", gate.at_most, "no share such as 0.5%"))
    elif gate.at_most is not None:
        most = _parsed(
            f"{field}.at_most",
            gate.at_most,
            _TIME,
            lambda found: float(found[1]) / (1000 if found[2] == "ms" else 1),
            NO_TIME,
        )
        if most == 0:
            raise _wrong(f"{field}.at_most", gate.at_most, NO_TIME)
    return GateLimit(factor, most)


def _check_new(gate: Gate, before: Sequence[Gate], field: str) -> None:
    """Check what policies of before may have: it means nothing, or stores a secret. Raises: ProblemError
    invalid_policy."""
    if gate in before:
        raise ProblemError("invalid_policy", f"it is the same as gate[{before.index(gate)}]", field=field)
    if gate.webhook is None:
        return
    if gate.at_least_calls != Gate().at_least_calls:
        text = "a webhook judges by itself, without at_least_calls"
        raise ProblemError("invalid_policy", text, field=f"{field}.at_least_calls")
    parts = urlsplit(gate.webhook)
    if "@" in parts.netloc:
        # Not quoted: whoever may read the policy, or the log, would see it.
        text = "a URL with a user or a password would show it to all who see the policy; leave it out"
        raise ProblemError("invalid_policy", text, field=f"{field}.webhook")
    try:
        _ = parts.port
    except ValueError:
        raise _wrong(f"{field}.webhook", gate.webhook, "a URL with a port that doesn't exist") from None


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and text.isprintable() and " " not in text
    except ValueError:
        return False


def _step(field: str, step: str | StepTable) -> PolicyStep:
    table = StepTable(until=step) if isinstance(step, str) else step
    if table.until is None and table.pause is None:
        raise ProblemError("invalid_policy", "a step has until, pause or both", field=field)
    until = None
    if table.until is not None:
        name = field if isinstance(step, str) else f"{field}.until"
        until = _amount(name, table.until)
        if until.up(1) == 0:
            raise _wrong(name, table.until, "no node at all")
    approval = table.pause == "approval"
    if table.role != "deploy" and not approval:
        raise ProblemError("invalid_policy", 'a role is for pause = "approval"', field=f"{field}.role")
    pause = None if table.pause is None or approval else _duration(f"{field}.pause", table.pause)
    text = ", ".join(filter(None, (table.until, table.pause and f"pause {table.pause}")))
    return PolicyStep(until, text, pause, approval, table.role)


def _amount(field: str, text: str) -> Amount:
    if _COUNT.fullmatch(text):
        return Amount(int(text), Fraction(0))
    return Amount(None, _share(field, text, "no number of nodes and no share such as 5%"))


def _share(field: str, text: str, wrong: str) -> Fraction:
    share = _parsed(field, text, _SHARE, lambda found: Fraction(found[1]) / 100, wrong)
    if share > 1:
        raise _wrong(field, text, "more than 100%")
    return share


def _duration(field: str, text: str, least: timedelta = timedelta(0)) -> timedelta:
    seconds = _parsed(
        field, text, _DURATION, lambda found: int(found[1]) * UNITS[found[2]], "no duration such as 30s, 10m, 2h or 1d"
    )
    if seconds > LONGEST.total_seconds():
        raise _wrong(field, text, "more than 90d")
    if seconds < least.total_seconds():
        raise _wrong(field, text, f"less than {least.total_seconds():.0f}s")
    return timedelta(seconds=seconds)


def _window(field: str, text: str, *, accepted: bool) -> Window:
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise _wrong(field, text, "no window such as Mon-Fri 22:00-05:00 Europe/Lisbon")
    first, last = (_day(field, text, found[at]) for at in (1, 2 if found[2] else 1))
    begins, ends = (_clock(field, text, found[at]) for at in (3, 4))
    if begins in (ends, DAY):
        raise _wrong(field, text, "a window that begins when it ends; for whole days, write 00:00-24:00")
    days = frozenset((first + n) % 7 for n in range((last - first) % 7 + 1))
    try:
        return Window(days, begins, ends, _zone(field, text, found[5]))
    except ProblemError:
        if not accepted:
            raise
        return Window(days, begins, ends, None)


def _day(field: str, text: str, day: str) -> int:
    if day.lower() not in DAYS:
        raise _wrong(field, text, f"a window on {day}, which is no day such as Mon")
    return DAYS.index(day.lower())


def _clock(field: str, text: str, clock: str) -> int:
    """Return minutes since midnight."""
    found = _CLOCK.fullmatch(clock)
    if found is None:
        raise _wrong(field, text, f"a window with {clock}, which is no time from 00:00 to 24:00")
    return DAY if found[1] is None else int(found[1]) * 60 + int(found[2])


def _zone(field: str, text: str, name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, ZoneInfoNotFoundError, OSError):
        pass
    try:
        ZoneInfo("UTC")
    except (ZoneInfoNotFoundError, OSError):
        raise _wrong(
            field, text, "a window in a time zone, and this machine of control knows none: install its package tzdata"
        ) from None
    raise _wrong(field, text, f"a window in {name}, which is no time zone such as Europe/Lisbon")


def _parsed(field: str, text: str, pattern: re.Pattern[str], made: Callable[[re.Match[str]], T], wrong: str) -> T:
    found = pattern.fullmatch(text)
    if found is None:
        raise _wrong(field, text, wrong)
    return made(found)


def _wrong(field: str, text: str, wrong: str) -> ProblemError:
    return ProblemError("invalid_policy", f"{text!r} is {wrong}", field=field)
