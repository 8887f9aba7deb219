"""What happens next in a rollout: pure rules over values, without I/O.

`decide` is asked again and again. It looks at the rollout, its group's nodes and what its gates say, and returns what
to write. Nothing is remembered but what the rollout's row has, so a decision that was lost with its replica is taken
again.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from heapq import heappop, heappush
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
ANSWERS_TAKE = timedelta(minutes=2)
"""How long gates may take to say something once a step's time is over, before that counts as silence: nodes tell of
their calls about once a minute, and another replica that carries the rollout on asks webhooks anew."""
REHEARSAL = 0
"""The step before the first one."""


@dataclass(frozen=True, slots=True)
class RolloutPosition:
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
    """Failed nodes that don't count: earlier steps went on with them, or somebody has accepted them."""
    measured_from: datetime
    """Calls before it don't count for this step's gates, and neither bake nor pause begins earlier."""


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
    """Whether its last sync to the release failed, or expired: a node that goes silent then may have been broken by it.
    It stays so while the node tries again."""


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """What to write."""

    position: RolloutPosition
    start: tuple[str, ...] = ()
    """Ids of nodes whose target becomes the release."""
    roll_back: bool = False
    """Make a release with the functions of the group's release: started nodes go back to it."""


@dataclass(frozen=True, slots=True)
class GroupNodes:
    """The group's nodes, as a rollout finds them."""

    nodes: Sequence[GroupNode]
    started: int
    """How many nodes the rollout has started, with those that have left since."""
    rollout_id: str
    """What the order of its nodes is made from."""


def in_order(nodes: Collection[GroupNode], rollout_id: str) -> list[GroupNode]:
    """Return nodes in the order in which this rollout starts them: by a hash, evenly over the values of their label.

    Of the first nodes of the order, however many, each value has its share, give or take less than two nodes.
    """
    by_label: dict[str, list[tuple[bytes, GroupNode]]] = defaultdict(list)
    for node in nodes:
        by_label[node.label].append((_mark(rollout_id, node.id), node))
    # Each node may have one of some places: of a value that has every third node, the first one a place of the first
    # three, the second one of the next three, and so on. Whoever must come soonest comes next, so all come in time.
    count = len(nodes)
    places = []
    for label, same in by_label.items():
        same.sort(key=lambda pair: pair[0])
        tie = _mark(rollout_id, label)
        places += [(at * count // len(same), -(-(at + 1) * count // len(same)), tie, label) for at in range(len(same))]
    places.sort()
    labels: list[str] = []
    able: list[tuple[int, bytes, int, str]] = []
    for at, (earliest, latest, tie, label) in enumerate([*places, (count, 0, b"", "")]):
        while len(labels) < earliest and able:
            labels.append(heappop(able)[-1])
        heappush(able, (latest, tie, at, label))
    # The largest value would always come first, and a single node last: the rollout begins somewhere in the round.
    first = int.from_bytes(_mark(rollout_id, "")[:8]) * count >> 64
    ordered = {label: iter(same) for label, same in by_label.items()}
    return [next(ordered[label])[1] for label in (*labels[first:], *labels[:first])]


def failed_nodes(nodes: Iterable[GroupNode]) -> int:
    """Return how many of the nodes that the rollout has started have failed."""
    return sum(node.failed for node in nodes if node.step is not None)


def decide(
    position: RolloutPosition, rules: Rules, group: GroupNodes, gates: Sequence[Outcome], now: datetime
) -> RolloutDecision:
    """Return what to do now. `gates` are what the step's gates say, in order."""
    if position.state != "running":
        return RolloutDecision(position)
    if position.step == REHEARSAL:
        return _rehearsal(position, rules, group.nodes, now)
    return _step(position, rules, rules.steps[position.step - 1], group, gates, now)


def first(rules: Rules, *, rehearse: bool, rehearsal_only: bool, now: datetime) -> RolloutPosition:
    """Return a rollout at its beginning."""
    begun = RolloutPosition("running", REHEARSAL, now, "rehearsal", now, "", rehearsal_only, 0, now)
    return begun if rehearse or rehearsal_only else next_step(begun, rules, 0, now)


def next_step(position: RolloutPosition, rules: Rules, failed: int, now: datetime) -> RolloutPosition:
    """Return the rollout at the step after its present one; done, if that was the last.

    It goes on with `failed` failed nodes (`failed_nodes`), which don't count for the next step.
    """
    if position.step == len(rules.steps):
        return replace(position, state="done", waits_for="", waits_since=now, reason="")
    return replace(
        position,
        state="running",
        step=position.step + 1,
        step_since=now,
        waits_for="",
        waits_since=now,
        reason="",
        forgiven=failed,
        measured_from=now,
    )


def paused(position: RolloutPosition, said: str, now: datetime) -> RolloutPosition:
    """Return a running rollout that an operator has paused."""
    return replace(position, state="paused", waits_for="operator", waits_since=now, reason=said)


def resumed(position: RolloutPosition, rules: Rules, failed: int, now: datetime) -> RolloutPosition:
    """Return a paused rollout that goes on: its step's gates, bake and pause are measured from now.

    What had stopped it is accepted: its `failed` failed nodes (`failed_nodes`), or what a rehearsal has found, so that
    the first step begins. Of one that an operator had paused, nothing is.
    """
    if position.step == REHEARSAL and position.waits_for != "operator":
        return promoted(position, rules, failed, now, everything=False)
    forgiven = position.forgiven if position.waits_for == "operator" else failed
    return replace(
        position, state="running", waits_for="", waits_since=now, reason="", forgiven=forgiven, measured_from=now
    )


def promoted(
    position: RolloutPosition, rules: Rules, failed: int, now: datetime, *, everything: bool
) -> RolloutPosition:
    """Return an open rollout without the rest of its step; with `everything`, without all steps but the last one."""
    last = len(rules.steps)
    if everything and position.step < last:
        position = replace(position, step=last - 1)
    return next_step(replace(position, rehearsal_only=False), rules, failed, now)


def rehearsal_left(position: RolloutPosition, rules: Rules, now: datetime) -> timedelta:
    """Return how long nodes may still take for a rehearsal. Its time begins when one of them is online."""
    if position.state == "running" and position.waits_for == "unknown":
        return rules.rehearsal_time
    return position.measured_from + rules.rehearsal_time - now


def _rehearsal(position: RolloutPosition, rules: Rules, nodes: Sequence[GroupNode], now: datetime) -> RolloutDecision:
    if nodes and not any(node.online or node.rehearsed is not None for node in nodes):
        # Nobody could get the release now, so nothing is held up by waiting for one that can try it.
        return _waiting(position, "unknown", "all nodes of the group are offline: the first ones back rehearse it", now)
    if position.waits_for == "unknown":
        position = replace(position, measured_from=now)
    able = [node for node in nodes if node.online and node.rehearses]
    left = [node for node in able if node.rehearsed is None]
    if left and rehearsal_left(position, rules, now) > timedelta(0):
        return _waiting(position, "rehearsal", f"it waits for {_count(left)} to rehearse it", now)
    failed = sum(node.rehearsed == "failed" for node in nodes)
    passed = sum(node.rehearsed == "passed" for node in nodes)
    unknown = len(nodes) - failed - passed
    if failed:
        said = f"the rehearsal failed on {counted(failed, 'node')} of {len(nodes)}"
        return _paused(position, "failed", said, now) if rules.on_failure == "pause" else _aborted(position, said, now)
    if unknown > rules.max_unknown.down(len(nodes)):
        said = f"the outcome is unknown on {counted(unknown, 'node')} of {len(nodes)}, more than max_unknown allows"
        return _paused(position, "unknown", said, now)
    if able and not passed:
        # Offline and older nodes may be missing. Where others could have tried, silence isn't an answer.
        return _paused(position, "unknown", f"the rehearsal passed on none of {_count(able)} that could try it", now)
    if position.rehearsal_only and not passed:
        return _paused(position, "unknown", f"none of {_count(nodes)} could try it", now)
    if position.rehearsal_only:
        said = f"it was rehearsed: it passed on {counted(passed, 'node')} of {len(nodes)}"
        return _paused(position, "rehearsed", said, now)
    return RolloutDecision(next_step(position, rules, failed_nodes(nodes), now))


def _step(
    position: RolloutPosition,
    rules: Rules,
    step: PolicyStep,
    group: GroupNodes,
    gates: Sequence[Outcome],
    now: datetime,
) -> RolloutDecision:
    started = [node for node in group.nodes if node.step is not None]
    mine = [node for node in started if node.step == position.step]
    failed = failed_nodes(started)
    # Where an accepted node has recovered or left, it excuses no other.
    position = replace(position, forgiven=min(position.forgiven, failed))
    if failed - position.forgiven > rules.max_failed.down(len(mine)):
        said = f"{counted(failed - position.forgiven, 'node')} failed in this step, which has started {len(mine)}"
        return _stopped(position, rules, said, now)
    if "failed" in gates:
        return _stopped(position, rules, f"{_gates(gates, 'failed')} failed", now)
    begun = position.measured_from
    if step.until is not None:
        wanted = len(group.nodes) if step.whole else step.until.up(len(group.nodes)) - group.started
        free = [node for node in group.nodes if node.step is None and node.online]
        if wanted > 0 and free:
            count = counted(min(wanted, len(free)), "node")
            if rules.window is not None and not rules.window.open(now):
                said = f"it starts {count} when the window opens"
                if rules.window.zone is None:
                    said = "control's machine doesn't know the window's time zone: install its package tzdata"
                return _waiting(position, "window", said, now)
            order = in_order(group.nodes, group.rollout_id)
            start = tuple(node.id for node in order if node.step is None and node.online)[:wanted]
            return replace(_waiting(position, "nodes", f"it has started {count}", now), start=start)
        left = [node for node in started if node.online and node.reached is None and not node.failed]
        if left:
            return _waiting(position, "nodes", f"it waits for {_count(left)} to reach the release", now)
        begun = max([begun, *(node.reached for node in mine if node.reached is not None)]) + rules.bake
        if now < begun:
            return _waiting(position, "baking", f"it bakes until {_text(begun)}", now)
    if step.pause is not None and now < begun + step.pause:
        return _waiting(position, "pause", f"it pauses until {_text(begun + step.pause)}", now)
    if step.until is not None:
        # After the last step nothing starts that could go wrong as well: one silent node there blocks nothing.
        seen = started if step.whole else mine or started
        if group.nodes and not any(node.reached is not None for node in seen):
            said = "no node that was started is known to run it"
            if wanted > 0 and not started:
                said = "all nodes of the group are offline: they are started when they are back"
            return _waiting(position, "unknown", said, now)
        # What an approval has been asked for with isn't asked again.
        if "unknown" in gates and position.waits_for != "approval":
            waiting = _waiting(position, "unknown", f"{_gates(gates, 'unknown')} can't say yet", now)
            if rules.on_unknown == "rollback" and now - waiting.position.waits_since >= ANSWERS_TAKE:
                return _rolled_back(position, waiting.position.reason, now)
            return waiting
    if step.approval:
        return _waiting(position, "approval", f"it waits for an operator with the role {step.role}", now)
    return RolloutDecision(next_step(position, rules, failed, now))


def _stopped(position: RolloutPosition, rules: Rules, said: str, now: datetime) -> RolloutDecision:
    if rules.on_failure == "rollback":
        return _rolled_back(position, said, now)
    return _paused(position, "failed", said, now)


def _waiting(position: RolloutPosition, waits: Waits, said: str, now: datetime) -> RolloutDecision:
    since = position.waits_since if position.waits_for == waits else now
    return RolloutDecision(replace(position, waits_for=waits, waits_since=since, reason=said))


def _paused(position: RolloutPosition, waits: Waits, said: str, now: datetime) -> RolloutDecision:
    return RolloutDecision(replace(position, state="paused", waits_for=waits, waits_since=now, reason=said))


def _rolled_back(position: RolloutPosition, said: str, now: datetime) -> RolloutDecision:
    ended = replace(position, state="rolled_back", waits_for="", waits_since=now, reason=said)
    return RolloutDecision(ended, roll_back=True)


def _aborted(position: RolloutPosition, said: str, now: datetime) -> RolloutDecision:
    return RolloutDecision(replace(position, state="aborted", waits_for="", waits_since=now, reason=said))


def _mark(rollout_id: str, what: str) -> bytes:
    return hashlib.sha256(f"{rollout_id} {what}".encode()).digest()


def _count(nodes: Sequence[GroupNode]) -> str:
    return counted(len(nodes), "node")


def _gates(gates: Sequence[Outcome], outcome: Outcome) -> str:
    """Return the gates with an outcome: gate 1, gate 1 and 3."""
    return f"gate {' and '.join(str(at) for at, each in enumerate(gates, 1) if each == outcome)}"


def _text(when: datetime) -> str:
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")
