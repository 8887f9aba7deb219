"""docs/operations.md names every metric that control and nodes have, as a scraper sees it, and no other."""

import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from control.backups import backup_metrics
from control.backups.backup_metrics import GroupBackups
from control.metrics import ControlMetrics
from control.protocol.histogram import FOLDED
from control.protocol.manifest import Manifest
from control.rollouts import rollout_metrics
from control.rollouts.rollout_metrics import OpenRow, ReadRollouts, SaidRow, StateCount
from control.telemetry import fleet_metrics, schedules
from control.telemetry.call_history import CallTally
from control.telemetry.fleet_summary import Cause, FleetSummary, GroupSummary
from control.telemetry.node_health import Events, GroupToldRow
from control.telemetry.schedules import GroupLine
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.outcomes import Answer
from edge_runtime.dispatch.pool import FunctionQueue
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.ipc import frames
from edge_runtime.metrics import PoolCollector
from edge_runtime.schedules.tick_rules import Line
from edge_runtime.sync.node_agent import AgentFacts
from edge_runtime.wal import DatabaseSizes
from edge_runtime.web.callers import Callers
from tests.unit.project.test_docs_settings import DOCS


def exported(text: str) -> set[str]:
    """Histograms by their name, counters by that of their sample."""
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }


def fleet() -> str:
    """The fleet's metrics, of one group."""
    cause = Cause("c", "t", None, {"g": 1}, ("n",))
    group = GroupSummary("g", 1, {("failing", 1): 1}, {"failing": 1}, (cause,))
    policy = {"gate": [{"metric": "p99", "at_most": "1s"}]}
    rollout, said = (
        OpenRow(UUID(int=1), "g", 2, policy, 1, "failed"),
        SaidRow(UUID(int=1), 0, "failed", 2.0, 1.0, 0.5, 9),
    )
    calls = fleet_metrics.GroupCalls("g", {("f", 1): CallTally({}, {5: 1})}, {})
    texts = [
        fleet_metrics.standings(FleetSummary(datetime.now(UTC), (group,))),
        fleet_metrics.told([GroupToldRow("i", "1", 1, 1, 1, 1, 1, 1, 1, 1, 1)], {"i": "g"}),
        fleet_metrics.events({"i": Events(1, 1, 1)}, {"i": "g"}),
        fleet_metrics.numbers_taken(1, 1, 1),
        rollout_metrics.text(
            ReadRollouts([StateCount("paused", 1, 1)], [rollout], [said], {UUID(int=1): {"failed": 1}})
        ),
        schedules.text([GroupLine("g", "f", "0 3 * * *", 1, 1, "n", 1, 1, 1, 1)]),
        backup_metrics.text([GroupBackups("g", 1, 1, 1, 1.0, 1, 1, 1.0, 1, 1, 1)]),
        *fleet_metrics.calls_text([fleet_metrics.call_outcomes(calls)], [fleet_metrics.call_seconds(calls)]),
    ]
    return "".join(texts)


def nodes() -> str:
    tally = Tally("f")
    function = frames.LocalFunction("f", 1, "0" * 64, Manifest(), "")
    served = ServedFunction(0, function, tally, Breaker(), False, 5.0, 7)
    for took in (0.003, 0.5):
        call: Any = SimpleNamespace(began=1.0, request_id=b"", method="GET", script="", path="", times=None)
        served.settle(call, Answer(200, b"", b"", 7), 1.0 + took, took)
    pool: Any = SimpleNamespace(
        tallies={"f": tally},
        refusals={},
        functions={"f": served},
        queues=SimpleNamespace(of=FunctionQueue),
        waiting=0,
        links=set(),
        deaths=0,
        held_by="",
        release=SimpleNamespace(number=1, generation=1),
    )
    callers = Callers(Path(), certificates=False)
    counts: Any = (
        SimpleNamespace(zygotes=1),
        SimpleNamespace(size=1, limit=2, made=3, sizes=lambda: DatabaseSizes(4, 5, 6, 7)),
        callers,
    )
    registry = CollectorRegistry()
    agent: Any = SimpleNamespace(facts=lambda: AgentFacts(at_target=True, credential_ends=2.0, trust_ends=4.0))
    tls_files: Any = SimpleNamespace(expires=3.0)
    ring: Any = SimpleNamespace(lost=1, trouble="")
    backup: Any = SimpleNamespace(interval=10.0, lag=lambda: 5.0, pending=1, fails=True, uploads=2, failures=3)
    line = Line("f", "0 3 * * *", last_run=1.0, look=2.0)
    scheduler: Any = SimpleNamespace(lines=lambda: [line])
    more = {"ring": ring, "backup": backup, "scheduler": scheduler}
    registry.register(PoolCollector(pool, *counts, agent=agent, tls_files=tls_files, **more))
    return generate_latest(registry).decode()


def test_every_metric_is_documented_and_no_other() -> None:
    section = (DOCS / "operations.md").read_text("utf-8").split("## Metrics")[1].split("\n## ")[0]
    heads = [line.partition(":")[0] for line in section.splitlines() if line.startswith("- `")]
    documented = {name for head in heads for name in re.findall(r"`(skerry_\w+)`", head)}
    control = ControlMetrics()
    control.certificates_end(datetime.now(UTC), datetime.now(UTC))
    assert documented == exported(control.render().decode()) | exported(fleet()) | exported(nodes())


def test_the_times_of_calls_are_a_histogram() -> None:
    (family,) = (f for f in text_string_to_metric_families(nodes()) if f.name == "skerry_edge_call_seconds")
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert list(buckets) == [*map(str, FOLDED), "+Inf"]
    assert (buckets["0.001953125"], buckets["0.00390625"], buckets["0.25"], buckets["1.0"], buckets["+Inf"]) == (
        0,
        1,
        1,
        2,
        2,
    )
    assert [s.value for s in family.samples if s.name.endswith("_sum")] == [pytest.approx(0.503)]
