"""The node's spans as a collector gets them, read by OpenTelemetry's own protobuf; and collectors that fail."""

import logging
import socket
import time
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from control.protocol.trace_context import Place
from edge_runtime.telemetry import span_sender
from edge_runtime.telemetry.span_sender import SpanSender
from edge_runtime.telemetry.spans import CLIENT, TraceSpan
from tests.support.edge import until
from tests.support.otlp_receiver import attributes, collector

ROOT = Place(b"t" * 16, b"r" * 8)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent last has as long as a busy machine needs."""
    monkeypatch.setattr(span_sender, "LAST_SEND", 60.0)


PARTS = [
    TraceSpan(ROOT, b"", "GET /a", 1_000, 9_000, 2, {"skerry.function": "a", "http.response.status_code": 200}),
    TraceSpan(
        Place(ROOT.trace, b"s" * 8), ROOT.span, "SELECT", 2_000, 3_000, CLIENT, {"db.query.text": "é"}, "sql_failed"
    ),
]


@pytest.mark.usefixtures("patient")
def test_spans_arrive_as_they_were_made() -> None:
    with collector() as got:
        sender = SpanSender(got.url, {"service.name": "skerry-edge", "skerry.node": "one"}, {"x-token": "t"}, None)
        sender.start()
        for part in PARTS:
            sender.put(part)
        sender.close()
        root, select = got.spans()
        assert got.resources == [{"service.name": "skerry-edge", "skerry.node": "one"}]
        assert got.headers[0]["x-token"] == "t"
    assert (root.trace_id, root.span_id, root.parent_span_id) == (ROOT.trace, ROOT.span, b"")
    assert (root.start_time_unix_nano, root.end_time_unix_nano, root.kind) == (1_000, 9_000, 2)
    assert attributes(root) == {"skerry.function": "a", "http.response.status_code": 200}
    assert root.status.code == Status.STATUS_CODE_UNSET
    assert (select.parent_span_id, select.status.code) == (ROOT.span, Status.STATUS_CODE_ERROR)
    assert attributes(select) == {"db.query.text": "é", "error.type": "sql_failed"}


@pytest.mark.usefixtures("patient")
async def test_a_collector_that_fails_is_told_of_once_and_gets_spans_when_it_is_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_sender, "PERIOD", 0.02)
    with collector() as got, caplog.at_level(logging.INFO, "skerry.traces"):
        got.status = 500
        sender = SpanSender(got.url, {}, {}, None)
        sender.start()
        for _ in range(3):
            before = len(got.headers)
            sender.put(PARTS[0])
            await until(lambda before=before: len(got.headers) > before)
        await until(lambda: sender.dropped == 3)
        got.status = 200
        sender.put(PARTS[1])
        await until(lambda: len(got.spans()) == 1)
        sender.close()
    lines = [record.getMessage() for record in caplog.records if record.name == "skerry.traces"]
    assert [line.partition(":")[0].split()[0:3] for line in lines] == [
        ["traces", "can't", "be"],
        ["traces", "can", "be"],
    ]
    assert "it answered 500" in lines[0]
    assert "dropped since the start: 3 spans" in lines[1]


@pytest.mark.usefixtures("patient")
def test_a_redirect_takes_no_header_elsewhere() -> None:
    with collector() as got:
        got.status = 307
        sender = SpanSender(got.url, {}, {"authorization": "secret"}, None)
        sender.start()
        sender.put(PARTS[0])
        sender.close()
        assert len(got.headers) == 1
    assert sender.dropped == 1


@pytest.mark.usefixtures("patient")
def test_more_spans_than_may_wait_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_sender, "PERIOD", 3600.0)
    with collector() as got:
        sender = SpanSender(got.url, {}, {}, None)
        for _ in range(span_sender.MOST + 7):
            sender.put(PARTS[0])
        assert sender.dropped == 7
        sender.start()
        sender.close()
        assert len(got.spans()) == span_sender.MOST


def test_a_silent_collector_doesnt_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sender = SpanSender(f"http://127.0.0.1:{silent.getsockname()[1]}", {}, {}, None)
        sender.start()
        sender.put(PARTS[0])
        before = time.monotonic()
        sender.close()
        assert time.monotonic() - before < span_sender.LAST_SEND + 10


def test_a_ca_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises((OSError, ValueError)):
        SpanSender("https://127.0.0.1:1", {}, {}, tmp_path / "ca.pem")
