"""What metrics say of rollouts: their states, steps and nodes, and each gate's answer with its values."""

from typing import Any
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families

from control.rollouts import rollout_metrics, store
from control.rollouts.gates import GateVerdict
from control.rollouts.measuring import Measuring
from control.storage.connection import Connection
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.replica import Replica, Site
from tests.support.rollouts import open_rollout

GATES = [
    {"metric": "error_ratio", "than_before": "1.2x", "at_least_calls": 100},
    {"webhook": "https://u.example.com/secret?key=1"},
    {"webhook": "https://u.example.com/another"},
]


@pytest.fixture(autouse=True)
def read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_metrics, "READ_EVERY", 0.0)


async def scraped(replica: Replica) -> dict[str, dict[tuple[str, ...], float]]:
    """The values of metrics of rollouts, by the values of their labels (but the group and release) in order of name."""
    answer = await replica.call("GET", "/metrics")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        if family.name.startswith("skerry_rollout"):
            for sample in family.samples:
                labels = {**sample.labels}
                assert labels.pop("group", "default") == "default"
                assert labels.pop("release", "2") == "2"
                values = found.setdefault(sample.name, {})
                key = tuple(labels[name] for name in sorted(labels))
                assert key not in values
                values[key] = sample.value
    return found


async def execute(replica: Replica, statement: str, *values: Any) -> None:
    await replica.services.db.transaction(lambda conn: conn.execute(statement, *values))


async def test_rollouts_in_metrics(control_site: Site) -> None:
    # Nobody carries the rollout on.
    async with control_site.running(clock=SetClock(timers="stand")) as replica:
        states = dict.fromkeys(
            [(state,) for state in ("running", "paused", "done", "aborted", "superseded", "rolled_back")], 0.0
        )
        assert await scraped(replica) == {"skerry_rollouts": states, "skerry_rollouts_failed_gates": states}
        await seeds.function(replica, "alpha")
        await seeds.release(replica, functions={"alpha": 1})
        nodes = [await replica.join(name) for name in ("one", "two", "three")]
        for node in nodes:
            await node.sync()
        rollout = await open_rollout(replica, functions={"alpha": await seeds.function(replica, "alpha")})
        await rollout.start(replica, nodes[:2])
        await nodes[0].sync()
        await execute(replica, "UPDATE rollouts SET policy = $1, waits_for = 'nodes'", {"gate": GATES})
        said = [
            GateVerdict("failed", 0.03, 0.012, 0.01, 300, "3% of 300 calls failed"),
            GateVerdict("unknown", None, None, None, 300, ""),
            GateVerdict("passed", None, None, None, 300, ""),
        ]

        async def save(conn: Connection) -> None:
            stored = await store.by_release(conn, UUID(rollout.id))
            assert stored is not None
            await Measuring.save(conn, stored, said, replica.services.clock.now())

        await replica.services.db.transaction(save)
        found = await scraped(replica)
        one, two, three = (
            "1: error_ratio at most 1.2x of before",
            "2: webhook at u.example.com",
            "3: webhook at u.example.com",
        )
        assert found == {
            "skerry_rollouts": {**states, ("running",): 1},
            "skerry_rollouts_failed_gates": {**states, ("running",): 1},
            "skerry_rollout_step": {(): 1},
            "skerry_rollout_waits": {("nodes",): 1},
            "skerry_rollout_nodes": {("at_target",): 1, ("syncing",): 1, ("waiting",): 1},
            "skerry_rollout_gates": {
                **{(one, outcome): float(outcome == "failed") for outcome in ("passed", "failed", "unknown")},
                **{(two, outcome): float(outcome == "unknown") for outcome in ("passed", "failed", "unknown")},
                **{(three, outcome): float(outcome == "passed") for outcome in ("passed", "failed", "unknown")},
            },
            "skerry_rollout_gate_measured": {(one,): 0.03},
            "skerry_rollout_gate_allowed": {(one,): 0.012},
            "skerry_rollout_gate_before": {(one,): 0.01},
            "skerry_rollout_gate_calls": {(one,): 300, (two,): 300, (three,): 300},
        }
        # A policy of a later version takes nothing from the metrics but the words.
        await execute(replica, "UPDATE rollouts SET policy = $1", {"gate": [{"metric": "later"}]})
        found = await scraped(replica)
        assert found["skerry_rollout_gate_measured"] == {("1: ",): 0.03}
        # That a gate has ended it stays.
        await execute(replica, "UPDATE rollouts SET state = 'aborted'")
        ended = {**states, ("aborted",): 1}
        assert await scraped(replica) == {"skerry_rollouts": ended, "skerry_rollouts_failed_gates": ended}
