"""Bodies of answers about rollouts. Times are RFC 3339 in UTC; missing values are null."""

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from control.api.release_bodies import UndoCounts
from control.protocol.wire import Body, RehearsedChange, Text
from control.rollouts.policy import Policy
from control.rollouts.rules import Outcome, State, Waits

NodeOutcome = Literal["at_target", "syncing", "failed", "offline", "held", "waiting", "superseded", "left"]
"""A node in a rollout: it runs the release; it was started and is on its way; its last sync failed; it was started and
is offline; it was started and is held at a restore; it wasn't started yet; the rollout has ended, and a newer release
has taken this one's place on it, such as the one of a rollback; it was started, and has left the group since."""


class Act(Body, frozen=True):
    """An operator's act on a rollout."""

    reason: Text = ""
    all: bool = False
    """With `promote`: leave out all steps that are left, and not just the rest of the present one."""
    data: bool = False
    """With `rollback`: nodes' data go back too, on each node to where they were before it got the release."""
    step: Annotated[int, Meta(ge=0)] | None = None
    """The step that whoever acts has seen: the act is refused if the rollout is at another one by now."""


class GateResult(Struct):
    """What a gate said last, with the values that it saw."""

    gate: str
    """In words, such as `error_ratio of orders at most 1.2x of before`."""
    outcome: Outcome
    measured: float | None
    """A share of calls for `error_ratio`, seconds for `p99`; null for a webhook, or without calls."""
    allowed: float | None
    before: float | None
    calls: int
    at_least_calls: int
    """0 for a webhook, which judges by itself."""
    why: str
    """What it saw, in a sentence; for people."""
    measured_at: datetime | None


class NodeCounts(Struct):
    """How many nodes there are of each outcome."""

    at_target: int = 0
    syncing: int = 0
    failed: int = 0
    offline: int = 0
    held: int = 0
    waiting: int = 0
    superseded: int = 0
    left: int = 0


class RolloutStep(Struct):
    """A step of a rollout."""

    number: int
    """From 1; 0 is the rehearsal."""
    text: str
    """As the policy has it, such as `5%`."""
    state: Literal["passed", "now", "not_begun"]
    nodes: NodeCounts
    """The nodes that this step started."""
    gates: list[GateResult]


class RehearsalCounts(Struct):
    """How many nodes' rehearsals had each outcome. `pending`: they may still report; they count as unknown."""

    passed: int = 0
    failed: int = 0
    unknown: int = 0
    pending: int = 0


class Rollout(Struct):
    """A rollout, without its steps."""

    group: str
    number: int
    """Of its release."""
    state: State
    step: int
    """0 during the rehearsal."""
    steps: int
    waits_for: Waits
    waits_since: datetime
    reason: str
    """Why it waits or ended, in a sentence."""
    attempt: int
    started: int
    """Nodes that it has started."""
    nodes: int
    """Nodes of the group that aren't revoked."""
    offline: int
    """Those of them that are offline now, whether the rollout has started them or not."""
    newest: int
    """The number of the group's newest release: an aborted rollout of an earlier one can't begin again."""
    made_by: str
    made_at: datetime
    ended_at: datetime | None


class ShownRollout(Rollout):
    """A rollout with everything about it."""

    policy: Policy
    rehearsal: RehearsalCounts | None
    """Null if there was none."""
    plan: list[RolloutStep]
    counts: NodeCounts
    undo: UndoCounts | None = None
    """How far nodes' data have gone back with its rollback; null if that left them."""


class RolloutNode(Struct):
    """A node in a rollout."""

    name: str
    outcome: NodeOutcome
    step: int | None
    """The step that started it."""
    started_at: datetime | None
    reached_at: datetime | None
    error_code: str
    error_message: str


class NodeRehearsal(Struct):
    """What a node found when it tried the release on a copy of its own data."""

    name: str
    outcome: Outcome
    code: str
    """Why it didn't pass: an error's code, or `offline`, `held`, `too_old`, `no_answer`; `pending` if it may still
    report."""
    message: str
    row: str
    """The row that made a schema change fail, as `table key=value`; '' if that isn't known."""
    changes: list[RehearsedChange]
    schema_digest: str
    seconds: float
    database: int
    """Bytes of the copy."""
    told_at: datetime | None
