"""A release's trace: from the operator's request at control to the node's commit, sent by both sides."""

import asyncio
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from control import tracing
from control.local.pki import Pki
from control.protocol import wire
from edge_runtime.telemetry import span_sender
from tests.guests.build import guest
from tests.support.agents import change_plans, edge, joined, running_control
from tests.support.moved_clock import MovedClock
from tests.support.otlp_receiver import attributes, collector


def _spoil_second(plan: wire.Plan) -> None:
    if plan.release_number == 2:
        plan.functions[0].sha256 = "0" * 64


async def test_a_sync_is_one_trace_over_control_and_node(
    clock: MovedClock, database_url: str, bucket_url: str, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_plans(monkeypatch, _spoil_second)
    # However slow the machine is, what is sent last arrives.
    for sender in (span_sender, tracing):
        monkeypatch.setattr(sender, "LAST_SEND", 60.0)
    with collector() as got:
        async with running_control(database_url, bucket_url, pki, otlp_url=got.url) as control:
            await joined(control, tmp_path)
            async with edge(tmp_path, otlp_url=got.url) as node:
                version = await control.push("echo", guest("echo"))
                await control.call("POST", "schema-changes", {"name": "one", "sql": "CREATE TABLE a (id INTEGER)"})
                await control.release(functions={"echo": version})
                await node.until(lambda status: status["release"] and status["at_target"])
                # It isn't tried again before the end.
                clock.stand()
                await control.release(functions={"echo": await control.push("echo", guest("trap"))})
                # The node knows of it before it tells control, which its end may keep it from.
                await control.until(lambda node: node["error"])
        syncs = await asyncio.to_thread(got.wait, "sync", 2)
    releases = {span.span_id: span for span in got.spans("POST /v1/releases")}
    good, bad = sorted(syncs, key=lambda span: span.start_time_unix_nano)
    for sync in (good, bad):
        release = releases[sync.parent_span_id]
        assert sync.trace_id == release.trace_id
        below = [span for span in got.spans() if span.parent_span_id == sync.span_id]
        assert {span.trace_id for span in below} == {sync.trace_id}
        steps = {span.name: span for span in below}
        reached = {"fetch", "compile", "batches", "flip"} if sync is good else {"fetch"}
        assert steps.keys() == {*reached, "PUT /v1/syncs/{id}"}
        assert release.start_time_unix_nano < steps["fetch"].start_time_unix_nano
        last = steps["flip" if sync is good else "fetch"]
        assert attributes(last).get("error.type", "") == attributes(sync).get("error.type", "")
    assert good.status.code == Status.STATUS_CODE_UNSET
    assert bad.status.code == Status.STATUS_CODE_ERROR
    assert {resource["service.name"] for resource in got.resources} == {"skerry-control", "skerry-edge"}
