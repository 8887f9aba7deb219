"""The policy of a rollout, as an operator writes it, and as the values that it means.

The words are those of Argo Rollouts, Flagger and hawkBit where they have one (docs/how-to/roll-out-in-steps.md).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Annotated, Literal, TypeVar
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
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DURATION = re.compile(r"(\d{1,6})(s|m|h|d)")
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)%")
_COUNT = re.compile(r"[1-9]\d{0,6}")
_WINDOW = re.compile(r"([A-Za-z]{3})(?:-([A-Za-z]{3}))? (\d\d):(\d\d)-(\d\d):(\d\d) (\S{1,64})")
_FACTOR = re.compile(r"(\d{1,3}(?:\.\d{1,3})?)x")
_TIME = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s)")


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
    """How long a step goes on after its last node's flip."""
    max_failed: Word = "0%"
    """The most nodes that may fail, of those that this step has started: a share, rounded down, or a number."""
    on_failure: Literal["pause", "rollback"] = "pause"
    """What happens when too many nodes fail, or a gate does."""
    on_unknown: Literal["pause", "rollback"] = "pause"
    """What happens when a step's time is over and a gate's answer is unknown. `pause` waits for an answer."""
    unknown_after: Word = "24h"
    """After how long somebody is told again that the rollout waits for an answer."""
    window: Word | None = None
    """When nodes may be started, such as `Mon-Fri 22:00-05:00 Europe/Lisbon`; at any time, if not given."""
    spread_by: LabelKey | None = None
    """A label over whose values each step's nodes are spread evenly."""
    rehearse: bool = True
    """Have every online node try the release on a copy of its own data first."""
    rehearsal_time: Word = "10m"
    """How long nodes may take for that."""
    max_unknown: Word = "100%"
    """The most nodes of which the rehearsal may not know: a share, rounded down, or a number."""
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
    """The times of a week, in a time zone, at which nodes may be started. It may go past midnight."""

    days: frozenset[int]
    """Days on which it begins; 0 is Monday."""
    begins: time
    ends: time
    zone: ZoneInfo

    def open(self, now: datetime) -> bool:
        """Return whether it is open at `now`."""
        local = now.astimezone(self.zone)
        at = local.time()
        if self.begins < self.ends:
            return local.weekday() in self.days and self.begins <= at < self.ends
        yesterday = (local.weekday() - 1) % 7
        return (local.weekday() in self.days and at >= self.begins) or (yesterday in self.days and at < self.ends)


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


AT_ONCE = Policy(bake="0s")
"""The policy of a group without one, whose release changes the schema: a rehearsal, and then all nodes at once."""


def rules_of(policy: Policy) -> Rules:
    """Return what a policy means. Raises: ProblemError invalid_policy, which names the field that is wrong."""
    steps = tuple(_step(f"steps[{at}]", step) for at, step in enumerate(policy.steps))
    last: tuple[int, Fraction] | None = None
    for at, step in enumerate(steps):
        if step.until is None:
            continue
        if last is not None and (step.until.count or 0, step.until.share) < last and step.until.count is None:
            raise _wrong(f"steps[{at}]", step.text, "a share that is smaller than an earlier one's")
        if step.until.count is None:
            last = (0, step.until.share)
    if not steps[-1].whole:
        raise _wrong(f"steps[{len(steps) - 1}]", steps[-1].text, "not the last step, which must be 100%")
    for at, gate in enumerate(policy.gate):
        limit_of(gate, f"gate[{at}]")
    return Rules(
        steps=steps,
        bake=_duration("bake", policy.bake),
        max_failed=_amount("max_failed", policy.max_failed),
        on_failure=policy.on_failure,
        on_unknown=policy.on_unknown,
        unknown_after=_duration("unknown_after", policy.unknown_after),
        window=None if policy.window is None else _window("window", policy.window),
        spread_by=policy.spread_by,
        rehearse=policy.rehearse,
        rehearsal_time=_duration("rehearsal_time", policy.rehearsal_time),
        max_unknown=_amount("max_unknown", policy.max_unknown),
        gates=tuple(policy.gate),
    )


def limit_of(gate: Gate, field: str = "gate") -> GateLimit:
    """Return what a gate with a metric allows. Raises: ProblemError invalid_policy."""
    if (gate.metric is None) == (gate.webhook is None):
        raise ProblemError("invalid_policy", "a gate has either a metric or a webhook", field=f"{field}.metric")
    if gate.webhook is not None:
        if not gate.webhook.startswith(("http://", "https://")):
            raise _wrong(f"{field}.webhook", gate.webhook, "no URL that begins with https:// or http://")
        if gate.than_before or gate.at_most or gate.function:
            raise ProblemError("invalid_policy", "a webhook judges by itself: it takes no limit", field=f"{field}")
        return GateLimit(None, None)
    if gate.than_before is None and gate.at_most is None:
        raise ProblemError("invalid_policy", "a metric needs than_before, at_most or both", field=f"{field}.at_most")
    factor = most = None
    if gate.than_before is not None:
        found = _FACTOR.fullmatch(gate.than_before)
        if found is None or float(found[1]) == 0:
            raise _wrong(f"{field}.than_before", gate.than_before, "no factor such as 1.2x")
        factor = float(found[1])
    if gate.at_most is not None:
        pattern, what = (_SHARE, "share such as 0.5%") if gate.metric == "error_ratio" else (_TIME, "time such as 50ms")
        found = pattern.fullmatch(gate.at_most)
        if found is None:
            raise _wrong(f"{field}.at_most", gate.at_most, f"no {what}")
        most = float(found[1]) / (100 if gate.metric == "error_ratio" else 1000 if found[2] == "ms" else 1)
    return GateLimit(factor, most)


def _step(field: str, step: str | StepTable) -> PolicyStep:
    if isinstance(step, str):
        step = StepTable(until=step)
    if step.until is None and step.pause is None:
        raise ProblemError("invalid_policy", "a step has until, pause or both", field=field)
    until = None if step.until is None else _amount(f"{field}.until", step.until)
    if until is not None and until.count is None and not 0 < until.share <= 1:
        raise _wrong(f"{field}.until", step.until or "", "no share above 0% and up to 100%")
    approval = step.pause == "approval"
    pause = None if step.pause is None or approval else _duration(f"{field}.pause", step.pause)
    return PolicyStep(until, step.until or f"pause {step.pause}", pause, approval, step.role)


def _amount(field: str, text: str) -> Amount:
    if _COUNT.fullmatch(text) or text == "0":
        return Amount(int(text), Fraction(0))
    return Amount(None, _parsed(field, text, _SHARE, lambda found: Fraction(found[1]) / 100, "no number or share"))


def _duration(field: str, text: str) -> timedelta:
    made = _parsed(
        field, text, _DURATION, lambda found: int(found[1]) * UNITS[found[2]], "no duration such as 30s, 10m, 2h or 1d"
    )
    if made > LONGEST.total_seconds():
        raise _wrong(field, text, "more than 90d")
    return timedelta(seconds=made)


def _window(field: str, text: str) -> Window:
    wrong = "no window such as Mon-Fri 22:00-05:00 Europe/Lisbon"
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise _wrong(field, text, wrong)
    try:
        first = DAYS.index(found[1].lower())
        last = first if found[2] is None else DAYS.index(found[2].lower())
        begins, ends = time(int(found[3]), int(found[4])), time(int(found[5]), int(found[6]))
        zone = ZoneInfo(found[7])
    except (ValueError, ZoneInfoNotFoundError, OSError):
        raise _wrong(field, text, wrong) from None
    if begins == ends:
        raise _wrong(field, text, "a window that begins when it ends")
    return Window(frozenset((first + n) % 7 for n in range((last - first) % 7 + 1)), begins, ends, zone)


def _parsed(field: str, text: str, pattern: re.Pattern[str], made: Callable[[re.Match[str]], T], wrong: str) -> T:
    found = pattern.fullmatch(text)
    if found is None:
        raise _wrong(field, text, wrong)
    return made(found)


def _wrong(field: str, text: str, wrong: str) -> ProblemError:
    return ProblemError("invalid_policy", f"{text!r} is {wrong}", field=field)
