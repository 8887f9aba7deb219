"""Control's traces, as a collector gets them: requests, their statements, and syncs within their release's trace."""

import socket
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from control import tracing
from control.protocol import wire
from tests.support import seeds
from tests.support.otlp_receiver import attributes, collector
from tests.support.ports import free_port
from tests.support.replica import Replica, Site, TestNode


@pytest.fixture(autouse=True)
def all_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left at a replica's end reaches the collector, on a busy machine too."""
    monkeypatch.setattr(tracing, "LAST_SEND", 20.0)


async def _ask(replica: Replica, method: str, path: str, body: Any = None, token: str = "", **headers: str) -> int:
    headers = {"authorization": f"Bearer {token or replica.admin}", "content-type": "application/json"} | headers
    data = wire.canonical(body) if body is not None else None
    async with replica.session.request(method, replica.url + path, data=data, headers=headers) as answer:
        await answer.read()
        return answer.status


async def _release(replica: Replica) -> None:
    version = await seeds.function(replica, "hello")
    made = await replica.call("POST", "/v1/releases", {"group": "default", "functions": {"hello": version}})
    assert made.status == 201, made.body


async def _told(node: TestNode, plan: wire.Plan, update: wire.SyncUpdate) -> int:
    traceparent = {"traceparent": plan.traceparent} if plan.traceparent else {}
    return await _ask(node.replica, "PUT", f"/v1/syncs/{plan.sync_id}", update, node.credential, **traceparent)


def _parents(spans: list[Span]) -> dict[str, str]:
    """Each span's name with that of the span above it."""
    names = {span.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent_span_id, "") for span in spans}


async def test_a_request_and_its_statements_are_one_trace_below_the_callers(control_site: Site) -> None:
    with collector() as got:
        async with control_site.running(otlp_url=got.url) as replica:
            trace, caller = uuid4().hex, uuid4().hex[:16]
            assert await _ask(replica, "GET", "/v1/nodes", traceparent=f"00-{trace}-{caller}-01") == 200
            assert await _ask(replica, "GET", "/v1/nodes/nobody", traceparent="00-nonsense") == 404
        (request,) = got.spans("GET /v1/nodes")
        assert (request.trace_id.hex(), request.parent_span_id.hex()) == (trace, caller)
        assert request.kind == Span.SPAN_KIND_SERVER
        told = attributes(request)
        assert (told["http.response.status_code"], told["http.route"]) == (200, "/v1/nodes")
        below = [span for span in got.spans() if span.parent_span_id == request.span_id]
        assert {span.trace_id for span in below} == {request.trace_id}
        texts = {span.name: attributes(span).get("db.query.text", "") for span in below}
        assert "FROM nodes" in texts["node_views.nodes"]
        assert "COMMIT" in texts
        (refused,) = got.spans("GET /v1/nodes/{node}")
        assert refused.parent_span_id == b""
        assert attributes(refused)["http.response.status_code"] == 404
        assert attributes(refused)["url.path"] == "/v1/nodes/nobody"
        assert got.resources[0]["service.name"] == "skerry-control"


async def test_a_sync_is_part_of_its_releases_trace_from_creation_to_the_nodes_commit(control_site: Site) -> None:
    with collector() as got:
        async with control_site.running(otlp_url=got.url) as replica, control_site.running(otlp_url=got.url) as other:
            good, bad = await replica.join("good"), await replica.join("bad")
            await _release(replica)
            plan = await good.plan()
            good.apply(plan)
            # The result comes to another replica than the plan came from.
            good.replica = other
            assert await _told(good, plan, wire.SyncUpdate("running", step="fetch")) == 200
            assert await _told(good, plan, wire.SyncUpdate("succeeded", inventory=good.inventory)) == 200
            failing = await bad.plan()
            error = wire.SyncError("disk_full", "no room")
            assert await _told(bad, failing, wire.SyncUpdate("failed", error=error)) == 200
        (release,) = got.spans("POST /v1/releases")
        syncs = {attributes(span)["skerry.node"]: span for span in got.spans("sync")}
        assert syncs.keys() == {"good", "bad"}
        for node, told in (("good", plan), ("bad", failing)):
            sync = syncs[node]
            assert (sync.trace_id, sync.parent_span_id) == (release.trace_id, release.span_id)
            assert told.traceparent == f"00-{release.trace_id.hex()}-{sync.span_id.hex()}-01"
            assert release.start_time_unix_nano < sync.start_time_unix_nano < sync.end_time_unix_nano
            assert attributes(sync)["skerry.release"] == "default 1"
        reports = [span for span in got.spans("PUT /v1/syncs/{id}") if span.parent_span_id == syncs["good"].span_id]
        assert len(reports) == 2
        assert {span.trace_id for span in reports} == {release.trace_id}
        assert syncs["bad"].status.code == Status.STATUS_CODE_ERROR
        assert attributes(syncs["bad"])["error.type"] == "disk_full"
        assert syncs["good"].status.code == Status.STATUS_CODE_UNSET


async def test_polls_have_no_spans_and_a_node_traces_no_syncs_of_its_own_making(control_site: Site) -> None:
    with collector() as got:
        async with control_site.running(otlp_url=got.url) as replica:
            node = await replica.join("one")
            await _release(replica)
            plan = await node.plan()
            forged = f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"
            told = wire.SyncUpdate("running", step="fetch")
            for sync, status in ((plan.sync_id, 200), ("nonsense", 422)):
                path = f"/v1/syncs/{sync}"
                assert await _ask(replica, "PUT", path, told, node.credential, traceparent=forged) == status
        assert got.spans("POST /v1/releases")
        assert not [span.name for span in got.spans() if "poll" in span.name or span.name.startswith("PUT")]


async def test_a_small_share_traces_releases_and_none_of_the_rest(control_site: Site) -> None:
    with collector() as got:
        async with control_site.running(otlp_url=got.url, trace_share=1e-9) as replica:
            node = await replica.join("one")
            await _release(replica)
            assert (await node.sync()).traceparent == ""
        assert {span.name for span in got.spans() if span.kind == Span.SPAN_KIND_SERVER} == {"POST /v1/releases"}


async def test_without_a_collector_nothing_is_traced(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await _release(replica)
        assert (await node.sync()).traceparent == ""
        assert replica.services.tracing is None


async def test_headers_for_the_collector_come_from_a_file(control_site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "headers"
    secret.write_text("x-team: shops\n\nauthorization: Bearer of-the-collector\n")
    with collector() as got:
        async with control_site.running(otlp_url=got.url, otlp_headers_file=secret) as replica:
            await replica.call("GET", "/v1/groups")
        assert {"x-team": "shops", "authorization": "Bearer of-the-collector"}.items() <= got.headers[0].items()


@pytest.mark.parametrize("fault", ["away", "silent"])
async def test_a_collector_that_is_away_or_silent_holds_nothing_up(
    control_site: Site, fault: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "LAST_SEND", 2.0)
    # Nobody accepts what comes to it.
    port = free_port()
    silent = socket.create_server(("127.0.0.1", port))
    if fault == "away":
        silent.close()
    with caplog.at_level("WARNING"):
        async with control_site.running(otlp_url=f"http://127.0.0.1:{port}") as replica:
            for _ in range(5):
                assert (await replica.call("GET", "/v1/groups")).status == 200
            before = time.monotonic()
        assert time.monotonic() - before < tracing.LAST_SEND + 15
    silent.close()
    if fault == "away":
        (line,) = [record.getMessage() for record in caplog.records if record.name == "skerry.traces"]
        assert "traces can't be sent" in line
