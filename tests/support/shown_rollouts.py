"""Rollouts as control's API answers them, for tests of what the commands make of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import orjson

from control.api import rollout_bodies as bodies
from control.protocol.wire import RehearsedChange
from control.rollouts.policy import Policy

NOW = datetime(2026, 12, 2, 1, 0, tzinfo=UTC)
GATE = bodies.GateResult(
    gate="error_ratio of orders at most 1.2x of before",
    outcome="failed",
    measured=0.031,
    allowed=0.0024,
    before=0.002,
    calls=1234,
    at_least_calls=200,
    why="3.10 % of the calls failed, and 0.24 % may",
    measured_at=NOW,
)


def answer(found: Any) -> dict[str, Any]:
    """Return a body as the commands get it."""
    answered: dict[str, Any] = orjson.loads(msgspec.json.encode(found))
    return answered


def rollout(state: str = "running", waits_for: str = "", step: int = 1, **more: Any) -> dict[str, Any]:
    """Return a rollout of release 7 in three steps, in a group of 1,000 nodes; `more` are further fields of it."""
    policy = Policy(steps=["1", "5%", "100%"])
    counts = more.pop("counts", bodies.NodeCounts(at_target=48, failed=2, waiting=950))
    gates = more.pop("gates", [])
    nothing = bodies.NodeCounts()
    plan = []
    for at, text in enumerate(policy.steps, 1):
        now = at == step
        plan.append(
            bodies.RolloutStep(
                number=at,
                text=str(text),
                state="passed" if at < step else "now" if now else "not_begun",
                nodes=bodies.NodeCounts(at_target=1) if at < step else counts if now else nothing,
                gates=gates if now else [],
            )
        )
    given = {
        "group": "shops",
        "number": 7,
        "state": state,
        "step": step,
        "steps": 3,
        "waits_for": waits_for,
        "waits_since": NOW,
        "reason": "",
        "attempt": 1,
        "started": 50,
        "nodes": 1000,
        "offline": 12,
        "newest": 7,
        "made_by": "ana",
        "made_at": NOW - timedelta(hours=3),
        "ended_at": None,
        "policy": policy,
        "rehearsal": bodies.RehearsalCounts(passed=988, unknown=12),
        "plan": plan,
        "counts": counts,
    }
    return answer(bodies.ShownRollout(**{**given, **more}))


def node(name: str, outcome: str, **more: Any) -> dict[str, Any]:
    """Return a node in a rollout."""
    given = {"step": 1, "started_at": NOW, "reached_at": None, "error_code": "", "error_message": ""}
    return answer(bodies.RolloutNode(name=name, outcome=outcome, **{**given, **more}))  # type: ignore[arg-type]


def rehearsal(name: str, outcome: str = "passed", *, stall: float = 0.01, **more: Any) -> dict[str, Any]:
    """Return what a node has found in a rehearsal, with one schema change."""
    given = {
        "code": "",
        "message": "",
        "row": "",
        "changes": [RehearsedChange(3, "prices", rows=1200, seconds=0.4, stall=stall)],
        "schema_digest": "a1b2c3d4e5f6a7b8",
        "seconds": 2.5,
        "database": 3 * 2**20,
        "told_at": NOW,
    }
    return answer(bodies.NodeRehearsal(name=name, outcome=outcome, **{**given, **more}))  # type: ignore[arg-type]
