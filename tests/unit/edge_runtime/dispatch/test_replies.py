"""What a worker's answer is for its call, its function's counts and its breaker; and what no worker says."""

from typing import Any

import msgspec
import pytest

from control import wire
from edge_runtime.children.worker_services import KINDS
from edge_runtime.dispatch import replies
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import TIMES, Answer, Call, Line, Outcome, Refusal, Tally, Target
from edge_runtime.ipc import frames

LOCAL = frames.LocalFunction("f", 1, "0" * 64, wire.Manifest(), "")


class Pool:
    def refuse(self, call: Call, refusal: Refusal) -> None:
        call.end(refusal)

    def damaged(self, sha256: str) -> None:
        raise AssertionError(sha256)


def call() -> tuple[Call, list[Outcome]]:
    ends: list[Outcome] = []
    made = Call("f", "GET", "", b"", [], "", b"", ends.append)
    made.target = Target(0, LOCAL, Tally("f"), Line("f"), Breaker(), False, 5.0, 7)
    return made, ends


def fault(status: Any) -> bytes:
    return msgspec.json.encode({"code": "guest_trap", "message": "It trapped.", "status": status})


def finish(made: Call, took: float, kind: int, body: bytes) -> None:
    replies.finish(Pool(), made, took, kind, b"", body)  # type: ignore[arg-type]


def test_an_answer_and_a_fault_end_the_call_and_are_counted() -> None:
    made, ends = call()
    finish(made, 0.0015, 201, b"x")
    assert ends == [Answer(201, b"", b"x", 7)]
    tally = made.target.tally
    assert tally.outcomes == {"ok": 1}
    assert tally.times == [int(bound == 0.002) for bound in (*TIMES, None)]
    made, ends = call()
    finish(made, 60.0, frames.FAULT, fault(503))
    assert ends == [Refusal(503, "guest_trap", "It trapped.", 1)]
    assert made.target.tally.times[-1] == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (600, b""),
        (65_535, b""),
        (frames.FAULT, fault(200)),
        (frames.FAULT, fault(600)),
        (frames.FAULT, fault(10**9)),
        (frames.FAULT, fault("502")),
        (frames.FAULT, b"{}"),
        (frames.DONE, b""),
    ],
)
def test_what_no_worker_says_leaves_the_call_to_be_refused(kind: int, body: bytes) -> None:
    made, ends = call()
    with pytest.raises(ValueError, match=r"\w"):
        finish(made, 0.001, kind, body)
    assert (ends, made.ended, made.target.tally.outcomes, made.target.tally.total) == ([], False, {}, 0.0)


@pytest.mark.parametrize("denied", [{"sql": 0}, {"sql": -1}, {"x" * 1000: 1}, {"": 1}, {"sql": "1"}])
def test_a_worker_makes_up_no_label_of_the_metrics(denied: dict[str, Any]) -> None:
    made, _ = call()
    replies.meanwhile(None, None, made, frames.DENIED, b'{"sql":2,"http_host":1}')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\w"):
        replies.meanwhile(None, None, made, frames.DENIED, msgspec.json.encode(denied))  # type: ignore[arg-type]
    assert made.target.tally.denied == {"sql": 2, "http_host": 1}


def test_every_kind_that_a_worker_counts_is_known() -> None:
    # The front doesn't import what opens databases, so it has a list of its own.
    assert set(replies.DENIED) == {*KINDS.values(), "http_host"}
