"""The log of functions: a flood of lines is logged a few at a time, in order, and what is too much is left out."""

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol.manifest import Manifest
from edge_runtime import clock
from edge_runtime.dispatch import guest_log
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.guest_log import GuestLog
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.ipc import frames, log_lines
from edge_runtime.ipc.request_head import Via
from edge_runtime.redaction import redact


def served(name: str) -> ServedFunction:
    function = frames.LocalFunction(name, 1, "0" * 64, Manifest(), "")
    return ServedFunction(0, function, Tally(name), Breaker(), False, 5.0, 7)


def call(name: str, caller: str = "", request_id: bytes = b"") -> Call:
    made = Call(name, "GET", "", b"", [], "", b"", lambda _: None, via=Via("http", caller, ""), request_id=request_id)
    made.served = served(name)
    return made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "skerry.guest"]


async def test_a_flood_of_lines_lets_others_have_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log, flood, other = GuestLog(), call("flood"), call("other", "till")
    written = [str(number) for number in range(2000)]
    log.write(flood, "\n".join(written).encode())
    log.write(other, b"mine")
    turns = [len(lines(caplog))]
    while len(lines(caplog)) < 2001:
        await asyncio.sleep(0)
        turns.append(len(lines(caplog)))
    assert max(after - before for before, after in zip([0, *turns], turns, strict=False)) <= guest_log.AT_ONCE
    assert lines(caplog) == [*[f"flood 1: {number}" for number in written], "other 1 (till): mine"]
    assert flood.served.tally.log_dropped == 0


async def test_a_log_that_was_cut_says_so_and_shows_no_part_of_a_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    known = type(redact)()
    known.know({"f": {"KEY": "opensesame"}})
    monkeypatch.setattr(guest_log, "redact", known)
    GuestLog().write(call("f"), log_lines.with_loss(b"one\nit opensesa", 70))
    assert not [line for line in lines(caplog) if "opens" in line]
    assert lines(caplog)[-1] == "f 1: [skerry: 70 bytes of this log were left out here]"
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]


async def test_what_is_more_than_may_wait_is_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(guest_log, "HELD", 1000)
    log, flood = GuestLog(), call("flood")
    for _ in range(3):
        log.write(flood, b"a\n" * 400)
    assert flood.served.tally.log_dropped == 800
    while log._waiting:
        await asyncio.sleep(0)
    assert lines(caplog) == ["flood 1: a"] * 400
    assert log._held == 0
    # And there is room again.
    log.write(flood, b"again")
    assert lines(caplog)[-1] == "flood 1: again"


async def test_a_function_over_its_budget_costs_no_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    # The time stands still: on a busy machine the budget would fill again meanwhile.
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0)
    log, flood = GuestLog(), call("flood")
    for _ in range(20):
        log.write(flood, b"a\n" * 8000)
    while log._waiting:
        await asyncio.sleep(0)
    logged = len(lines(caplog))
    assert logged + flood.served.tally.log_dropped == 160_000
    assert logged < 12_000
    told = [record.getMessage() for record in caplog.records if record.name == "skerry.calls"]
    assert len(told) == 1
    assert "left out of its log since the start" in told[0]


@given(st.text(st.sampled_from("ab\n\r\u2028"), max_size=30), st.integers(0, 10))
def test_a_text_is_cut_into_lines_one_after_the_other(text: str, taken: int) -> None:
    expected = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    cut = guest_log._Lines(Tally("flood"), "flood 1", {}, text)
    found = [line for _ in range(taken) if (line := cut.next()) is not None]
    assert found == expected[:taken]
    assert cut.over == (taken >= len(expected))
    assert cut.leave() == len(expected[taken:])
    assert cut.over
