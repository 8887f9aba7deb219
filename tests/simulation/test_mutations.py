"""The simulator finds what is broken on purpose: each way to break the program fails within some seeds.

That the properties hold for hundreds of seeds says nothing unless a program that breaks its promises is caught.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from control.protocol import wire
from control.protocol.manifest import Manifest
from control.sync import monitor, plan, reports
from control.sync.fleet_cache import CachedNode, FleetCache
from control.sync.node_state import NodeRow, SyncChanges
from control.sync.write_batches import WriteBatches
from edge_runtime.sync import plan_check, retries
from edge_runtime.sync.control_client import ControlClient
from edge_runtime.sync.sync_outcomes import Outbox, SyncOutcomes
from tests.support.simulation import runs

SEEDS = 200
"""Within so many each must be found; most are in the first."""
LATE = {
    "a node accepts an older generation": 11,
    "a node that has less counts as confirmed": 8,
    "other replicas don't hear that a node has less": 15,
}
"""What the first seeds don't show, and one that does: it is tried first. Where it no longer does, all others are."""


async def _nothing(*_arguments: Any) -> None:
    pass


def _any_generation(planned: wire.Plan, _generation: int) -> dict[str, Manifest]:
    return {
        function.name: plan_check.parse_manifest(function.name, function.manifest) for function in planned.functions
    }


async def _answered_before_it_is_written(self: WriteBatches[Any, Any], requests: list[Any], careful: bool) -> Any:
    if not isinstance(requests[0], reports.SyncReport):
        return await _transact(self, requests, careful)
    asyncio.get_running_loop().call_later(0.05, lambda: asyncio.ensure_future(_quietly(self, requests)))
    return [wire.SyncState(report.update.status, 15.0) for report in requests]


_transact = WriteBatches._transact


async def _quietly(batches: WriteBatches[Any, Any], requests: list[Any]) -> None:
    await asyncio.gather(_transact(batches, requests, False), return_exceptions=True)


async def _cleared_before_it_is_sent(self: SyncOutcomes, client: ControlClient) -> bool:
    waiting = self._outbox.waiting()
    if waiting is None:
        return False
    self._outbox.clear(waiting.sync_id)
    return await self._tell(client, waiting.sync_id, waiting.update) == "succeeded"


def _by_digest_alone(_fleet: FleetCache, node: CachedNode, poll: wire.Poll) -> bool:
    return node.digest == poll.digest


def _by_names_alone(inventory: wire.Inventory, release: plan.TargetRelease) -> bool:
    return {function.name for function in inventory.functions} == {function.name for function in release.functions}


def _still_confirmed(self: NodeRow, inventory: wire.Inventory, digest: str) -> None:
    if digest != self.digest:
        self.reported, self.schema_version, self.digest = inventory, inventory.schema_version, digest
        self.database_id = inventory.database_id


def _known_here_alone(self: NodeRow, inventory: wire.Inventory, digest: str) -> None:
    _still_confirmed(self, inventory, digest)
    self.confirmed_generation = 0


def _asleep(_fleet: FleetCache, _node_ids: Any) -> None:
    pass


MUTATIONS: dict[str, tuple[object, str, Callable[..., Any], str]] = {
    "a node accepts an older generation": (plan_check, "check_plan", _any_generation, "went back"),
    "a report is acknowledged and never written": (reports._ReportBatch, "save", _nothing, "was acknowledged"),
    "a report is acknowledged before it is written": (
        WriteBatches,
        "_transact",
        _answered_before_it_is_written,
        "was acknowledged",
    ),
    "a plan is sent whose sync isn't written": (SyncChanges, "save", _nothing, "isn't in the log"),
    "a report that couldn't be sent is forgotten": (Outbox, "keep", lambda *_: None, "doesn't know yet"),
    "a report is forgotten before it is sent": (
        SyncOutcomes,
        "deliver",
        _cleared_before_it_is_sent,
        "doesn't know yet",
    ),
    "control's trouble is taken for its last word": (retries, "final", lambda _status: True, "doesn't know yet"),
    "leases don't expire": (monitor.Monitor, "expire", _nothing, "hasn't ended"),
    "a replica doesn't look at generations": (FleetCache, "at_target", _by_digest_alone, "doesn't run"),
    "control compares names alone": (plan, "at_target", _by_names_alone, "never ran"),
    "a node that has less counts as confirmed": (NodeRow, "report", _still_confirmed, "doesn't run"),
    "other replicas don't hear that a node has less": (NodeRow, "report", _known_here_alone, "at 0 of"),
    "held polls aren't woken": (FleetCache, "_wake_slowly", _asleep, "a release without any fault"),
}


def _found(first: int) -> str:
    """What is wrong in the first of the seeds in which something is, beginning with `first`."""
    for seed in dict.fromkeys((first, *range(SEEDS))):
        try:
            runs.run(seed)
        except runs.Failed as failed:
            return failed.why
    return f"{SEEDS} seeds don't show it"


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_broken_program_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken, why = MUTATIONS[what]
    monkeypatch.setattr(owner, name, broken)
    assert why in _found(LATE.get(what, 0))
