"""Rollouts as metrics for Prometheus: where they stand, their nodes by outcome, and what their gates say.

They are the same at every replica, like the fleet's (`control.telemetry.fleet_metrics`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args
from uuid import UUID

import msgspec

from control.clock import Clock
from control.rollouts import gates, store
from control.rollouts.policy import Policy
from control.rollouts.rules import Outcome, State
from control.storage import queries
from control.storage.database import Database
from control.telemetry.fleet_metrics import family, labels
from control.telemetry.shared_reading import SharedReading

READ_EVERY = 15.0
"""Seconds between two readings."""


class StateCount(NamedTuple):
    """How many rollouts have a state."""

    state: str
    rollouts: int
    failed: int
    """Of these, those in whose last step a gate failed."""


class OpenRow(NamedTuple):
    """A rollout that hasn't ended."""

    release_id: UUID
    group_name: str
    number: int
    policy: dict[str, Any]
    step: int
    waits_for: str


class SaidRow(NamedTuple):
    """What a gate of such a rollout's present step said last."""

    release_id: UUID
    gate: int
    outcome: Outcome
    measured: float | None
    allowed: float | None
    before: float | None
    calls: int


@dataclass(frozen=True, slots=True)
class ReadRollouts:
    """What is read for the metrics."""

    states: Sequence[StateCount]
    open: Sequence[OpenRow]
    gates: Sequence[SaidRow]
    nodes: Mapping[UUID, Mapping[str, int]]
    """By rollout and outcome."""


SQL = queries.load("rollout_metrics")
STATES = SQL.rows("states", StateCount)
OPEN = SQL.rows("open", OpenRow)
GATES = SQL.rows("gates", SaidRow)


class RolloutMetrics:
    """Reads rollouts for scrapes, for all of them once."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._reading = SharedReading(self._read, READ_EVERY, clock)

    async def text(self) -> str:
        """Return the metrics as text. Raises: ProblemError, when the database doesn't answer."""
        return text(await self._reading.get())

    async def stop(self) -> None:
        """Cancel the running read."""
        await self._reading.stop()

    async def _read(self) -> ReadRollouts:
        states = await self._db.read(lambda conn: conn.fetch(STATES))
        if not states:
            return ReadRollouts((), (), (), {})
        found = await self._db.read(lambda conn: conn.fetch(OPEN))
        said = await self._db.read(lambda conn: conn.fetch(GATES))
        nodes: dict[UUID, dict[str, int]] = {}
        for each in found:
            counts = nodes.setdefault(each.release_id, {})
            for row in await self._db.read(partial(store.outcome_counts, release_id=each.release_id)):
                counts[row.outcome] = counts.get(row.outcome, 0) + row.nodes
        return ReadRollouts(states, found, said, nodes)


def text(read: ReadRollouts) -> str:
    """Return rollouts as metrics."""
    by_state = {row.state: row for row in read.states}
    states = [(labels(state=state), by_state[state].rollouts if state in by_state else 0) for state in get_args(State)]
    failed = [(labels(state=state), by_state[state].failed if state in by_state else 0) for state in get_args(State)]
    steps: list[tuple[str, float]] = []
    waits: list[tuple[str, float]] = []
    nodes: list[tuple[str, float]] = []
    for each in read.open:
        of = {"group": each.group_name, "release": str(each.number)}
        steps.append((labels(**of), each.step))
        if each.waits_for:
            waits.append((labels(**of, waits_for=each.waits_for), 1))
        for outcome, count in sorted(read.nodes.get(each.release_id, {}).items()):
            nodes.append((labels(**of, outcome=outcome), count))
    return (
        family("skerry_rollouts", "gauge", "Rollouts by state, with those that have ended", states)
        + family("skerry_rollouts_failed_gates", "gauge", "Of these, those in whose last step a gate failed", failed)
        + family("skerry_rollout_step", "gauge", "The step of a rollout that hasn't ended; 0: the rehearsal", steps)
        + family("skerry_rollout_waits", "gauge", "1: what a rollout that hasn't ended waits for", waits)
        + family("skerry_rollout_nodes", "gauge", "Nodes of a rollout that hasn't ended, by outcome", nodes)
        + _gates(read)
    )


def _names(policy: dict[str, Any]) -> dict[int, str]:
    """Return gates in words, by their places; none if the policy is one of another version of control."""
    try:
        return {place: gates.in_words(gate) for place, gate in enumerate(msgspec.convert(policy, Policy).gate)}
    except msgspec.ValidationError:
        return {}


def _gates(read: ReadRollouts) -> str:
    rollouts = {each.release_id: each for each in read.open}
    names = {id: _names(each.policy) for id, each in rollouts.items()}
    outcomes: list[tuple[str, float]] = []
    values: dict[str, list[tuple[str, float]]] = {name: [] for name in ("measured", "allowed", "before", "calls")}
    for said in read.gates:
        # The rollout may have ended, or begun, between two statements.
        if said.release_id not in rollouts:
            continue
        rollout = rollouts[said.release_id]
        # With its number, since several gates may read the same.
        gate = f"{said.gate + 1}: {names[said.release_id].get(said.gate, '')}"
        of = {"group": rollout.group_name, "release": str(rollout.number), "gate": gate}
        for outcome in get_args(Outcome):
            outcomes.append((labels(**of, outcome=outcome), int(outcome == said.outcome)))
        for name, found in values.items():
            value = getattr(said, name)
            if value is not None:
                found.append((labels(**of), value))
    unit = "a share of calls or seconds"
    return (
        family("skerry_rollout_gates", "gauge", "1 for what a gate of the present step says, 0 otherwise", outcomes)
        + family("skerry_rollout_gate_measured", "gauge", f"What a gate measured: {unit}", values["measured"])
        + family("skerry_rollout_gate_allowed", "gauge", f"The most that a gate allows: {unit}", values["allowed"])
        + family("skerry_rollout_gate_before", "gauge", f"What the hour before had: {unit}", values["before"])
        + family("skerry_rollout_gate_calls", "gauge", "Calls that a gate has judged", values["calls"])
    )
