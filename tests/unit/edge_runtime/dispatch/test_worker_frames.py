"""What a worker may say, and what none says."""

import json
from typing import Any

import msgspec
import pytest

from control.protocol.manifest import Manifest
from edge_runtime.children.worker_services import KINDS
from edge_runtime.dispatch import worker_socket
from edge_runtime.dispatch.outcomes import Answer, Refusal
from edge_runtime.dispatch.worker_socket import LONGEST, FrameUnfit
from edge_runtime.ipc import call_times, frames

SMALL = Manifest(response_limit=100)
TYPE = b"content-type: text/plain\r\n"


def outcome(kind: int, head: bytes = b"", body: bytes = b"", method: str = "GET") -> Any:
    return worker_socket.outcome(kind, head, body, 7, SMALL, method)


def fault(code: Any = "guest_trap", message: Any = "It trapped.", status: Any = 502) -> bytes:
    return msgspec.json.encode({"code": code, "message": message, "status": status})


@pytest.mark.parametrize(
    ("length", "kind", "head"),
    [
        (0, 199, 0),
        (0, 600, 0),
        (0, 65_535, 0),
        (0, 100, 0),
        (0, 0, 0),
        (0, frames.CALL, 0),
        (0, frames.PREPARED, 0),
        (LONGEST + 1, 200, 0),
        (LONGEST + 1, frames.HTTP, 0),
        (2**32 - 1, 200, 0),
        (10, 200, 11),
        (0, 599, 1),
        (1, frames.READY, 0),
        (1, frames.STALE, 0),
        (1, frames.DONE, 0),
        (10, frames.LOG, 10),
        ((1 << 20) + 1, frames.LOG, 0),
        (1025, frames.DENIED, 0),
        (call_times.LONGEST + 1, frames.TIMES, 0),
        ((256 << 10) + 1, frames.FAULT, 0),
    ],
)
def test_a_header_that_no_worker_sends(length: int, kind: int, head: int) -> None:
    assert not worker_socket.may_come(length, kind, head)


@pytest.mark.parametrize(
    ("length", "kind", "head"),
    [(0, 200, 0), (LONGEST, 599, 65_535), (9, 204, 9), (0, frames.DONE, 0), (1 << 20, frames.LOG, 0)],
)
def test_headers_that_workers_send(length: int, kind: int, head: int) -> None:
    assert worker_socket.may_come(length, kind, head)


@pytest.mark.parametrize(
    ("kind", "head", "body", "method"),
    [
        (204, b"", b"", "GET"),
        (200, TYPE, b"x" * 100, "POST"),
        (599, b"a: \xff\r\nb:\r\n", b"", "GET"),
        # The length that a GET's answer would have.
        (200, TYPE + b"content-length: 5\r\n", b"", "HEAD"),
        (200, TYPE, b"x", "HEAD"),
        (200, b"a: b\r\n" * 129, b"", "GET"),
    ],
)
def test_answers(kind: int, head: bytes, body: bytes, method: str) -> None:
    assert outcome(kind, head, body, method) == (Answer(kind, head, body, 7), None)


@pytest.mark.parametrize(
    ("kind", "head", "body", "method"),
    [
        (200, b"a: b", b"", "GET"),
        (200, b"a: b\n", b"", "GET"),
        (200, b"a: b\r\n\r\n", b"", "GET"),
        (200, b"\r\n", b"", "GET"),
        (200, b"a: b\r\n c: d\r\n", b"", "GET"),
        (200, b"a b: c\r\n", b"", "GET"),
        (200, b": c\r\n", b"", "GET"),
        (200, b"ab\r\n", b"", "GET"),
        (200, b"a: \x00\r\n", b"", "GET"),
        (200, b"a: \r\r\n", b"", "GET"),
        (200, b"a: b\r\n" * 130, b"", "GET"),
        *((200, b"a: b\r\n%b: 1\r\n" % name, b"", "GET") for name in (
            b"Connection", b"keep-alive", b"TE", b"trailer", b"transfer-encoding", b"upgrade", b"skerry-release",
            b"x-request-id", b"date", b"status", b"content-length",
        )),
        (200, TYPE + b"content-length: 1\r\n", b"x", "HEAD"),
        (304, b"content-length: 1\r\n", b"", "HEAD"),
        (200, b"content-length: 1\r\ncontent-length: 1\r\n", b"", "HEAD"),
        (200, b"content-length: -1\r\n", b"", "HEAD"),
        (200, b"content-length: 1 2\r\n", b"", "HEAD"),
        (200, b"content-length:\r\n", b"", "HEAD"),
        (200, b"content-length: " + b"1" * 19 + b"\r\n", b"", "HEAD"),
        (204, TYPE, b"x", "GET"),
        (304, TYPE, b"x", "GET"),
        (200, TYPE, b"x" * 101, "GET"),
    ],
)  # fmt: skip
def test_answers_that_no_worker_gives(kind: int, head: bytes, body: bytes, method: str) -> None:
    with pytest.raises(FrameUnfit):
        outcome(kind, head, body, method)


def test_long_header_lines_are_checked_as_well() -> None:
    long = b"x: " + b"y" * 60_000 + b"\r\n"
    assert outcome(200, long)[0].head == long
    with pytest.raises(FrameUnfit):
        outcome(200, long + b"\r\n")


def test_a_fault_has_a_code_that_the_node_knows() -> None:
    refused, found = outcome(frames.FAULT, b"", fault("database_busy", "It is busy.", 599))
    assert refused == Refusal(503, "database_busy", "It is busy.", 1, release=7)
    # Its status is the code's.
    assert found == frames.Fault("database_busy", "It is busy.", 503)
    for code in ("made_up", "", "x" * 64):
        assert outcome(frames.FAULT, b"", fault(code))[0][:2] == (500, "internal")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (frames.FAULT, fault(status=200)),
        (frames.FAULT, fault(status=600)),
        (frames.FAULT, fault(status=10**9)),
        (frames.FAULT, fault(status="502")),
        (frames.FAULT, fault("x" * 65)),
        (frames.FAULT, fault(7)),
        (frames.FAULT, fault(message="x" * 16_385)),
        (frames.FAULT, b"{}"),
        (frames.FAULT, b"[" * 100_000),
        (frames.FAULT, b'{"x":' + b"[" * 100_000),
        (frames.DONE, b""),
        (frames.LOADED, b""),
    ],
)
def test_what_ends_no_call(kind: int, body: bytes) -> None:
    with pytest.raises(FrameUnfit):
        outcome(kind, b"", body)


@pytest.mark.parametrize(
    "denied", [{"sql": 0}, {"sql": -1}, {"sql": 2**32 + 1}, {"sql": 2**64 - 1}, {"x" * 1000: 1}, {"": 1}, {"sql": "1"}]
)
def test_a_worker_makes_up_no_label_and_no_count_of_the_metrics(denied: dict[str, Any]) -> None:
    assert worker_socket.denials(b'{"sql":2,"http_host":1}') == {"sql": 2, "http_host": 1}
    with pytest.raises(FrameUnfit):
        worker_socket.denials(json.dumps(denied).encode())


def test_every_kind_that_a_worker_counts_is_known() -> None:
    # The front doesn't import what opens databases, so it has a list of its own.
    for kind in {*KINDS.values(), "http_host"}:
        assert worker_socket.denials(json.dumps({kind: 1}).encode()) == {kind: 1}


def test_an_order_has_the_answers_that_are_its_own() -> None:
    loaded = msgspec.json.encode(frames.Loaded([]))
    for order, kind, body in (
        (frames.RELEASE, frames.LOADED, loaded), (frames.FORGET, frames.DONE, b""), (frames.PRELOAD, frames.DONE, b""),
        (frames.PRELOAD, frames.DAMAGED, b""),
    ):  # fmt: skip
        worker_socket.check_order(order, kind, body)
    for order, kind, body in (
        (frames.RELEASE, frames.DONE, b""), (frames.RELEASE, 200, b""), (frames.RELEASE, frames.LOADED, b"[]"),
        (frames.FORGET, frames.LOADED, loaded), (frames.PRELOAD, frames.FAULT, b""),
    ):  # fmt: skip
        with pytest.raises(FrameUnfit):
            worker_socket.check_order(order, kind, body)
