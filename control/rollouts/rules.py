"""What happens next in a rollout: pure rules over values, without I/O.

`decide` is asked again and again. It looks at the rollout, its group's nodes and what its gates say, and returns what
to write. Nothing is remembered but what the rollout's row has, so a decision that was lost with its replica is taken
again.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from control.protocol.counts import counted
from control.rollouts.policy import PolicyStep, Rules

Outcome = Literal["passed", "failed", "unknown"]
State = Literal["running", "paused", "done", "aborted", "superseded", "rolled_back"]
Waits = Literal[
    "", "rehearsal", "rehearsed", "nodes", "window", "baking", "pause", "approval", "unknown", "failed", "operator"
]
"""Why a rollout doesn't go on now. `operator`: somebody has paused it."""

OPEN: frozenset[State] = frozenset({"running", "paused"})
"""States of a rollout that hasn't ended."""
REHEARSAL = 0
"""The step before the first one."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a rollout stands: the part of its row that rules change."""

    state: State
    step: int
    """`REHEARSAL`, or the number of the step, from 1."""
    step_since: datetime
    waits_for: Waits
    waits_since: datetime
    reason: str
    """`waits_for` in a sentence, or why it ended."""
    rehearsal_only: bool
    forgiven: int
    """Failed nodes of this step that somebody has accepted."""
    measured_from: datetime
    """Calls before it don't count for this step's gates, and the bake doesn't begin earlier."""


@dataclass(frozen=True, slots=True)
class GroupNode:
    """A node of the group that isn't revoked."""

    id: str
    label: str
    """The value of the label over which nodes are spread; '' if it hasn't got it."""
    online: bool
    rehearses: bool
    """Whether its version knows rehearsals."""
    rehearsed: Outcome | None = None
    """What it has reported of this attempt's rehearsal."""
    step: int | None = None
    """The step that started it; None if none has."""
    reached: datetime | None = None
    """When it flipped to the release, if it runs it."""
    failed: bool = False
    """Whether its last sync to the release failed."""


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """What to write."""

    rollout: Position
    start: tuple[str, ...] = ()
    """Ids of nodes whose target becomes the release."""
    roll_back: bool = False
    """Make a release with the functions of the group's release: started nodes go back to it."""


@dataclass(frozen=True, slots=True)
class GroupNodes:
    """The group's nodes, and how many the rollout has started, counting those that have left."""

    nodes: Sequence[GroupNode]
    started: int
    order: Sequence[GroupNode]
    """`nodes` in the order in which they are started (`in_order`)."""


def in_order(nodes: Collection[GroupNode], rollout_id: str) -> list[GroupNode]:
    """Return nodes in the order in which this rollout starts them: by a hash, evenly over the values of their label."""
    by_label: dict[str, list[tuple[bytes, GroupNode]]] = defaultdict(list)
    for node in nodes:
        by_label[node.label].append((hashlib.sha256(f"{rollout_id} {node.id}".encode()).digest(), node))
    placed = []
    for same in by_label.values():
        same.sort(key=lambda pair: pair[0])
        placed += [((at + 0.5) / len(same), mark, node) for at, (mark, node) in enumerate(same)]
    placed.sort(key=lambda place: place[:2])
    return [node for _, _, node in placed]


def decide(
    rollout: Position, rules: Rules, fleet: GroupNodes, gates: Sequence[Outcome], now: datetime
) -> RolloutDecision:
    """Return what to do now. `gates` are what the step's gates say, in order."""
    if rollout.state != "running":
        return RolloutDecision(rollout)
    if rollout.step == REHEARSAL:
        return _rehearsal(rollout, rules, fleet, now)
    return _step(rollout, rules, rules.steps[rollout.step - 1], fleet, gates, now)


def first(rules: Rules, *, rehearse: bool, rehearsal_only: bool, now: datetime) -> Position:
    """Return a rollout at its beginning."""
    begun = Position("running", REHEARSAL, now, "rehearsal", now, "", rehearsal_only, 0, now)
    return begun if rehearse or rehearsal_only else next_step(begun, rules, now)


def next_step(rollout: Position, rules: Rules, now: datetime) -> Position:
    """Return the rollout at the step after its present one; done, if that was the last."""
    if rollout.step == len(rules.steps):
        return replace(rollout, state="done", waits_for="", waits_since=now, reason="")
    return replace(
        rollout,
        state="running",
        step=rollout.step + 1,
        step_since=now,
        waits_for="",
        waits_since=now,
        reason="",
        forgiven=0,
        measured_from=now,
    )


def resumed(rollout: Position, failed: int, now: datetime) -> Position:
    """Return a paused rollout that goes on: the step's `failed` nodes are accepted, and its gates measured from now."""
    return replace(
        rollout,
        state="running",
        waits_for="",
        waits_since=now,
        reason="",
        forgiven=failed,
        measured_from=now,
        rehearsal_only=False,
    )


def _rehearsal(rollout: Position, rules: Rules, fleet: GroupNodes, now: datetime) -> RolloutDecision:
    nodes = fleet.nodes
    left = [node for node in nodes if node.rehearsed is None and node.online and node.rehearses]
    if left and now < rollout.step_since + rules.rehearsal_time:
        return RolloutDecision(_waiting(rollout, "rehearsal", f"{counted(len(left), 'node')} rehearse it", now))
    failed = sum(node.rehearsed == "failed" for node in nodes)
    unknown = sum(node.rehearsed in (None, "unknown") for node in nodes)
    if failed:
        said = f"the rehearsal failed on {counted(failed, 'node')} of {len(nodes)}"
        return RolloutDecision(
            _paused(rollout, "failed", said, now) if rules.on_failure == "pause" else _ended(rollout, "aborted", said)
        )
    if unknown > rules.max_unknown.down(len(nodes)):
        said = (
            f"the rehearsal doesn't know of {counted(unknown, 'node')} of {len(nodes)}, which is more than max_unknown"
        )
        return RolloutDecision(_paused(rollout, "unknown", said, now))
    if rollout.rehearsal_only:
        passed = len(nodes) - unknown
        said = f"it was rehearsed: it passed on {counted(passed, 'node')} of {len(nodes)}"
        return RolloutDecision(_paused(rollout, "rehearsed", said, now))
    return RolloutDecision(next_step(rollout, rules, now))


def _step(
    rollout: Position, rules: Rules, step: PolicyStep, fleet: GroupNodes, gates: Sequence[Outcome], now: datetime
) -> RolloutDecision:
    if step.until is not None:
        mine = [node for node in fleet.nodes if node.step == rollout.step]
        failed = sum(node.failed for node in mine)
        if failed > rules.max_failed.down(len(mine)) + rollout.forgiven:
            said = f"{counted(failed, 'node')} of the {len(mine)} that this step has started failed"
            return _stopped(rollout, rules, said, now)
        if "failed" in gates:
            failing = [str(at + 1) for at, outcome in enumerate(gates) if outcome == "failed"]
            return _stopped(rollout, rules, f"gate {' and '.join(failing)} failed", now)
        wanted = len(fleet.nodes) if step.whole else step.until.up(len(fleet.nodes)) - fleet.started
        free = [node for node in fleet.order if node.step is None and node.online][: max(0, wanted)]
        if free:
            if rules.window is not None and not rules.window.open(now):
                said = f"{counted(len(free), 'node')} start when the window opens"
                return RolloutDecision(_waiting(rollout, "window", said, now))
            said = f"{counted(len(free), 'node')} were started"
            return RolloutDecision(_waiting(rollout, "nodes", said, now), start=tuple(node.id for node in free))
        left = [node for node in fleet.nodes if node.step is not None and node.online and _on_its_way(node)]
        if left:
            return RolloutDecision(_waiting(rollout, "nodes", f"{counted(len(left), 'node')} are on their way", now))
        here = [node for node in fleet.nodes if node.step is not None and node.reached is not None]
        flips = [node.reached for node in here if node.step == rollout.step and node.reached is not None]
        baked = max([rollout.measured_from, *flips]) + rules.bake
        if now < baked:
            return RolloutDecision(_waiting(rollout, "baking", f"it bakes until {_text(baked)}", now))
        if not here and fleet.nodes:
            return _unknown(rollout, rules, "no node that was started runs it and is online", now)
        if "unknown" in gates:
            silent = [str(at + 1) for at, outcome in enumerate(gates) if outcome == "unknown"]
            return _unknown(rollout, rules, f"gate {' and '.join(silent)} can't say yet", now)
    if step.approval:
        return RolloutDecision(
            _waiting(rollout, "approval", f"it waits for an operator with the role {step.role}", now)
        )
    if step.pause is not None:
        waiting = _waiting(rollout, "pause", "", now)
        until = waiting.waits_since + step.pause
        if now < until:
            return RolloutDecision(replace(waiting, reason=f"it pauses until {_text(until)}"))
    return RolloutDecision(next_step(rollout, rules, now))


def _on_its_way(node: GroupNode) -> bool:
    return node.reached is None and not node.failed


def _stopped(rollout: Position, rules: Rules, said: str, now: datetime) -> RolloutDecision:
    if rules.on_failure == "rollback":
        return RolloutDecision(_ended(rollout, "rolled_back", said), roll_back=True)
    return RolloutDecision(_paused(rollout, "failed", said, now))


def _unknown(rollout: Position, rules: Rules, said: str, now: datetime) -> RolloutDecision:
    if rules.on_unknown == "rollback":
        return RolloutDecision(_ended(rollout, "rolled_back", said), roll_back=True)
    return RolloutDecision(_waiting(rollout, "unknown", said, now))


def _waiting(rollout: Position, waits: Waits, said: str, now: datetime) -> Position:
    since = rollout.waits_since if rollout.waits_for == waits else now
    return replace(rollout, waits_for=waits, waits_since=since, reason=said)


def _paused(rollout: Position, waits: Waits, said: str, now: datetime) -> Position:
    return replace(rollout, state="paused", waits_for=waits, waits_since=now, reason=said)


def _ended(rollout: Position, state: State, said: str) -> Position:
    return replace(rollout, state=state, waits_for="", reason=said)


def _text(when: datetime) -> str:
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")
