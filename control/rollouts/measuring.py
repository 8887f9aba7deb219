"""Measures what the gates of a rollout's step judge, and asks the webhooks of gates that have one.

Calls are counted by release number, so those of a release that a node has left count for no later one. A replica knows
its own counts at once; those of others come from the database, where a group with a rollout is written every few
seconds (`control.telemetry.ingest`).

Call `Measuring.measure` outside of transactions: it reads from the database by itself, and never waits for a webhook.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self
from uuid import UUID

import orjson

from control.clock import Clock
from control.problems import ProblemError
from control.rollouts import gates
from control.rollouts.gates import GateVerdict
from control.rollouts.policy import Gate, limit_of
from control.rollouts.rules import Outcome
from control.rollouts.store import StoredRollout
from control.storage import queries
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync import hours_before
from control.telemetry import call_history
from control.telemetry.call_history import CallTally
from control.telemetry.ingest import NumbersIngest
from control.telemetry.webhooks.webhook_client import Attempt, WebhookClient

PERIOD = 5.0
"""The fewest seconds between two readings for a step."""
REST, LONGEST_REST = 20.0, 30.0
"""A reading is kept for `REST` times as long as it took, but no longer than so many seconds."""
ON_THEIR_WAY = timedelta(seconds=75)
"""How long nodes may take to tell of their calls."""
ASK_EVERY = 30.0
"""Seconds between two questions to a gate's webhook."""
ASK_LIMIT = 10.0
"""Seconds for its answer."""
PAGE = 500
"""Nodes whose hours before are read at once."""
SAVE_EVERY = timedelta(seconds=15)
"""How old the stored answer of a gate gets while it stays the same."""
KEPT = 600.0
"""Seconds for which a step's values are kept after they were last wanted."""
NOT_ASKED = "it hasn't answered yet"

log = logging.getLogger("skerry.rollouts")


class StartedNodes(NamedTuple):
    """How many nodes a rollout has started."""

    nodes: int
    earlier: int
    """Of these, before a time."""
    told: int
    """Of how many the hour before is known."""


NONE_STARTED = StartedNodes(0, 0, 0)


class NodeHour(NamedTuple):
    """A node's calls of the hour before it flipped."""

    node_id: str
    before: bytes


SQL = queries.load("gates")
STARTED = SQL.rows("started", StartedNodes)
HOURS_BEFORE = SQL.rows("hours_before", NodeHour)


class MeasuredStep(NamedTuple):
    """A step of a rollout, as far as its gates are concerned."""

    release_id: UUID
    group_id: UUID
    group: str
    """The group's name."""
    number: int
    """The release's."""
    step: int
    step_since: datetime
    measured_from: datetime
    """As in `rules.RolloutPosition`."""
    gates: Sequence[Gate]


@dataclass(slots=True)
class _SeenStep:
    """What is known of a rollout's step."""

    step: MeasuredStep
    wanted_at: float
    """When it was last asked for, in the clock's `monotonic`, like all times here."""
    read_again_at: float = float("-inf")
    started: StartedNodes = NONE_STARTED
    now: call_history.Tallies = field(default_factory=dict)
    asked_at: dict[int, float] = field(default_factory=dict)
    """When the webhook of each gate was last asked, by the gate's place."""
    answers: dict[int, tuple[int, GateVerdict]] = field(default_factory=dict)
    """What it answered, and how many nodes were started then: with more nodes, the answer is an old one."""


@dataclass(slots=True)
class _HoursBefore:
    """The calls of the hours before of a rollout's nodes, summed up."""

    nodes: set[str] = field(default_factory=set)
    functions: dict[str, CallTally] = field(default_factory=dict)


class Measuring:
    """Measures for the replica that carries out rollouts; open as an asynchronous context manager."""

    def __init__(self, db: Database, clock: Clock, numbers: NumbersIngest, webhooks: WebhookClient) -> None:
        """`webhooks` is used by nobody else: it is opened and closed here."""
        self._db = db
        self._clock = clock
        self._numbers = numbers
        self._webhooks = webhooks
        self._kept: dict[UUID, _SeenStep] = {}
        self._before: dict[UUID, _HoursBefore] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._webhooks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._webhooks.__aexit__(kind, error, trace)

    async def measure(self, stored: StoredRollout) -> list[GateVerdict]:
        """Return what each gate says of a rollout's present step, in order; nothing before one that starts nodes.

        What can't be measured now is unknown, and so is a webhook's answer until it has come.
        """
        row = stored.row
        if not stored.rules.gates or not stored.rules.measures(row.step):
            return []
        since, place = (row.step_since, row.measured_from), (row.release_id, row.group_id, row.group_name, row.number)
        return await self.measure_step(MeasuredStep(*place, row.step, *since, stored.rules.gates))

    async def measure_step(self, step: MeasuredStep) -> list[GateVerdict]:
        """Return what each gate of the step says, in order."""
        kept = self._find(step)
        problem = ""
        if self._clock.monotonic() >= kept.read_again_at:
            try:
                await self._read(kept)
            except ProblemError as error:
                problem = f"the calls can't be read now: {error.detail}"
        return [
            self._ask(kept, place, gate)
            if gate.webhook is not None
            else GateVerdict("unknown", None, None, None, 0, problem)
            if problem
            else self._judge(kept, gate)
            for place, gate in enumerate(step.gates)
        ]

    def _find(self, step: MeasuredStep) -> _SeenStep:
        now = self._clock.monotonic()
        for id in [id for id, kept in self._kept.items() if kept.wanted_at < now - KEPT]:
            del self._kept[id]
            self._before.pop(id, None)
        kept = self._kept.get(step.release_id)
        if kept is None or (kept.step.step, kept.step.measured_from) != (step.step, step.measured_from):
            # Another step, or one that was resumed: nothing of what was seen before counts.
            kept = self._kept[step.release_id] = _SeenStep(step, now)
        kept.wanted_at = now
        return kept

    @staticmethod
    async def save(conn: Connection, stored: StoredRollout, verdicts: Sequence[GateVerdict], now: datetime) -> None:
        """Write what `measure` has returned for a rollout, in the transaction of `conn`.

        What is stored already is written again only every `SAVE_EVERY`.
        """
        for place, said in enumerate(verdicts):
            values = (said.outcome, said.measured, said.allowed, said.before, said.calls, said.why, now)
            await conn.execute(SQL["save"], stored.row.release_id, stored.row.step, place, *values, now - SAVE_EVERY)

    # Calls

    def _judge(self, kept: _SeenStep, gate: Gate) -> GateVerdict:
        now, before = CallTally(), CallTally()
        for (function, _), tally in kept.now.items():
            if gate.function in (None, function):
                now.add(tally.outcomes, tally.times)
        for function, tally in self._before[kept.step.release_id].functions.items():
            if gate.function in (None, function):
                before.add(tally.outcomes, tally.times)
        return gates.judge(gate, limit_of(gate), now, before)

    async def _read(self, kept: _SeenStep) -> None:
        """Raises: ProblemError."""
        step, began = kept.step, self._clock.monotonic()
        kept.started = await self._db.read(lambda conn: conn.one(STARTED, step.release_id, step.measured_from))
        await self._read_before(step.release_id, kept.started.told)
        kept.now = await self._read_calls(step, _since(step, kept.started.earlier))
        took = self._clock.monotonic() - began
        kept.read_again_at = began + max(PERIOD, min(REST * took, LONGEST_REST))

    async def _read_calls(self, step: MeasuredStep, since: datetime) -> call_history.Tallies:
        """Return the calls of the step's release since the beginning of a minute."""
        group, number = str(step.group_id), step.number
        until = self._clock.now() + call_history.MINUTE
        # Whole hours only are read by hour: the rest of the first one is read by minute.
        whole = since.replace(minute=0) + call_history.HOUR if since.minute else since
        parts = [(since, min(whole, until)), (whole, until)]
        found: call_history.Tallies = {}
        for begins, ends in parts:
            if begins >= ends:
                continue
            spans = await call_history.read(
                self._db, [group], begins, ends, self._numbers.unwritten(), self._numbers.replica, release=number
            )
            for span in spans:
                call_history.add_tallies(found, span.counted)
        return found

    async def _read_before(self, release_id: UUID, told: int) -> None:
        """Add the hours of nodes that have told theirs since the last time."""
        before = self._before.get(release_id)
        if before is None or told < len(before.nodes):
            before = self._before[release_id] = _HoursBefore()
        while len(before.nodes) < told:
            page = await self._db.read(partial(_hours, release_id, list(before.nodes)))
            for row in page:
                before.nodes.add(row.node_id)
                try:
                    found = hours_before.read(row.before)
                except ValueError as error:
                    log.warning("the calls of the hour before of node %s are left out: %s", row.node_id, error)
                    continue
                for calls in found:
                    before.functions.setdefault(calls.function, CallTally()).add(calls.outcomes, calls.times)
            if not page:
                break
            await asyncio.sleep(0)

    # Webhooks

    def _ask(self, kept: _SeenStep, place: int, gate: Gate) -> GateVerdict:
        """Return the webhook's last answer, and ask again if that is due."""
        now, nodes = self._clock.monotonic(), kept.started.nodes
        if now >= kept.asked_at.get(place, float("-inf")) + ASK_EVERY:
            kept.asked_at[place] = now
            task = asyncio.create_task(self._post(kept, place, gate.webhook or "", nodes))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        asked_for, verdict = kept.answers.get(place, (nodes, _answer("unknown", NOT_ASKED, kept)))
        if verdict.outcome == "passed" and asked_for < nodes:
            return _answer("unknown", "it is asked again, since more nodes were started after its last answer", kept)
        return verdict

    async def _post(self, kept: _SeenStep, place: int, url: str, nodes: int) -> None:
        step = kept.step
        body = {"group": step.group, "number": step.number, "step": step.step, "nodes": nodes, "calls": _calls(kept)}
        attempt = await self._webhooks.post(url, {}, orjson.dumps(body), ASK_LIMIT)
        kept.answers[place] = nodes, judged(attempt, _calls(kept))


def judged(attempt: Attempt, calls: int) -> GateVerdict:
    """Return what the answer of a gate's webhook means; `calls` are those of the step."""
    if not attempt.error:
        return GateVerdict("passed", None, None, None, calls, f"it answered {attempt.status}")
    return GateVerdict("failed" if 400 <= attempt.status < 500 else "unknown", None, None, None, calls, attempt.error)


def _since(step: MeasuredStep, earlier: int) -> datetime:
    """Return the beginning of the minute from which calls count.

    Calls are counted by the minute in which they were told. If no node was started before the step, all calls on the
    release are the step's. Otherwise they count from the first whole minute on; after a pause, from the first in which
    no node tells of calls that it had before.
    """
    whole = step.measured_from.replace(second=0, microsecond=0)
    if not earlier:
        return whole
    resumed = step.measured_from > step.step_since
    begins = step.measured_from + (ON_THEIR_WAY if resumed else timedelta(0))
    whole = begins.replace(second=0, microsecond=0)
    return whole if whole == begins else whole + call_history.MINUTE


def _calls(kept: _SeenStep) -> int:
    return sum(tally.calls for tally in kept.now.values())


def _answer(outcome: Outcome, why: str, kept: _SeenStep) -> GateVerdict:
    return GateVerdict(outcome, None, None, None, _calls(kept), why)


async def _hours(release_id: UUID, known: list[str], conn: Connection) -> list[NodeHour]:
    return await conn.fetch(HOURS_BEFORE, release_id, known, PAGE)
