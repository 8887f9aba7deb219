"""A node's polls tell real control of its calls and of itself: soon after a release, once, and however late."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from control.protocol import histogram, wire
from edge_runtime.cli.status import render
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.telemetry import poll_report
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.agents import DEADLINE, Control, Edge
from tests.support.deadlines import deadline
from tests.support.releases import READ, answers, first_release, push


class Polls:
    """The numbers that polls carried and that control answered, each once; `lose` may have an answer be lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[bytes] = []
        self.answered: dict[int, wire.Numbers] = {}
        self.lose: Callable[[], Exception | None] = lambda: None
        self.lost: list[bytes] = []
        """Those whose answers were lost, each time."""
        real = ControlClient.poll

        async def poll(client: ControlClient, asked: wire.Poll) -> wire.Plan | wire.Report | None:
            if asked.numbers:
                self.sent.append(asked.numbers)
            answer = await real(client, asked)
            if asked.numbers and (error := self.lose()) is not None:
                self.lost.append(asked.numbers)
                raise error
            if asked.numbers:
                numbers = msgspec.msgpack.decode(asked.numbers, type=wire.Numbers)
                assert self.answered.setdefault(numbers.sequence, numbers) == numbers
            return answer

        monkeypatch.setattr(ControlClient, "poll", poll)
        monkeypatch.setattr(poll_report, "SOON", 0.2)

    @property
    def calls(self) -> dict[int, int]:
        """Calls that control was told of, by release."""
        found: dict[int, int] = {}
        for numbers in self.answered.values():
            for function in numbers.functions:
                calls = sum(histogram.unpack(function.seconds).values())
                found[function.release] = found.get(function.release, 0) + calls
        return found

    async def until(self, condition: Callable[["Polls"], object]) -> None:
        async with deadline(DEADLINE):
            while not condition(self):
                await asyncio.sleep(0.02)


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> Polls:
    return Polls(monkeypatch)


def counted(node: Edge) -> int:
    return sum(counts.calls for counts in node.front.pool.counted())


async def test_control_is_told_of_each_call_soon_after_a_release(polls: Polls, control: Control, node: Edge) -> None:
    await first_release(control)
    await answers(node, 1)
    for _ in range(5):
        assert (await node.call("hello"))[0] == 200
    await polls.until(lambda p: p.calls.get(1) == counted(node) and any(n.node for n in p.answered.values()))
    (function,) = next(n for n in polls.answered.values() if n.functions).functions
    assert function.index == 0
    own = next(n.node for n in polls.answered.values() if n.node is not None)
    assert own.database > 0
    assert own.disk_free > 0
    assert own.memory > 10 << 20
    assert own.credential_ends > 0
    document = await node.status()
    assert f"release 1: {counted(node)} calls, 0 errors, p50 " in render(document)
    (told,) = document["functions"]
    (release,) = told["releases"]
    assert (release["release"], release["calls"]) == (1, counted(node))
    assert 0 < release["p50_ms"] <= release["p99_ms"]


@pytest.mark.background("numbers")
async def test_control_is_told_when_functions_start_by_themselves(polls: Polls, control: Control, node: Edge) -> None:
    asks = {"on_release": True, "schedule": ["0 3 1 1 *"], "config": {"STATUS": "404"}}
    await control.release(functions={"f": await control.push("f", guest("tick"), asks)})
    agent = node.front.agent
    assert agent is not None

    def lines(p: Polls) -> list[wire.LineNumbers]:
        agent.numbers.tell_node_soon()
        told = [n.node for n in p.answered.values() if n.node is not None]
        return [line for line in told[-1].schedules if line.last_status] if told else []

    await polls.until(lines)
    (line,) = lines(polls)
    assert (line.function, line.cron, line.last_status, line.failures) == ("f", "", "answer_404", 1)
    assert abs(line.last_run - time.time()) < DEADLINE
    # It writes what it has heard.
    await control.stop()
    await control.start()
    told = (await control.node("edge-1"))["numbers"]["schedules"]
    assert [(line["cron"], line["last_status"], line["next_run_at"] is None) for line in told] == [
        ("", "answer_404", True),
        ("0 3 1 1 *", None, False),
    ]
    assert told[1]["next_run_at"].endswith("-01-01T03:00:00Z")


async def test_a_lost_answer_or_an_absent_control_loses_no_call(polls: Polls, control: Control, node: Edge) -> None:
    await first_release(control)
    await answers(node, 1)
    errors = [NoAnswer("timed_out", "no answer"), NoAnswer("unreachable", "no answer")]
    polls.lose = lambda: errors.pop(0) if errors else None
    await node.call("hello")
    # Other numbers may have been answered before.
    await polls.until(lambda p: p.lost and len(p.sent) >= p.sent.index(p.lost[0]) + 3)
    at = polls.sent.index(polls.lost[0])
    assert polls.sent[at : at + 3] == [polls.lost[0]] * 3
    await control.stop()
    for _ in range(7):
        assert (await node.call("hello"))[0] == 200
    await node.until(lambda s: not s["control"]["reachable"])
    await control.start()
    await polls.until(lambda p: p.calls.get(1) == counted(node))


async def test_a_control_that_refuses_the_numbers_still_gets_polls(polls: Polls, control: Control, node: Edge) -> None:
    await first_release(control)
    await answers(node, 1)
    refusals = [ControlRefused(413, "body_too_large", "the body is too large")]
    polls.lose = lambda: refusals.pop() if refusals else None
    await node.call("hello")
    await polls.until(lambda p: not refusals)
    await node.call("hello")
    await polls.until(lambda p: p.calls.get(1, 0) >= 1)


async def test_a_sync_tells_the_calls_of_the_hour_before_it_and_keeps_them_while_control_is_away(
    control: Control, node: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bytes] = []
    lost = 2
    real = ControlClient.report

    async def report(client: ControlClient, sync_id: str, update: wire.SyncUpdate) -> wire.SyncState:
        if update.status == "succeeded":
            told.append(update.before)
            if len(told) > 1 and len(told) <= 1 + lost:
                raise NoAnswer("unreachable", "no answer")
        return await real(client, sync_id, update)

    monkeypatch.setattr(ControlClient, "report", report)
    await first_release(control)
    await answers(node, 1)
    await node.until(lambda s: s["at_target"])
    assert told == [b""]
    for _ in range(5):
        assert (await node.call("hello"))[0] == 200
    calls = counted(node)
    await push(control, 2)
    await answers(node, 2)
    await node.until(lambda s: s["at_target"])
    assert len(told) == 2 + lost
    assert set(told[1:]) == {told[1]}
    hour = msgspec.msgpack.decode(told[1], type=wire.HourBefore)
    (function,) = hour.functions
    assert (hour.names, function.release) == (["hello"], 1)
    assert sum(histogram.unpack(function.seconds).values()) >= calls
    assert sum(histogram.unpack(function.seconds).values()) <= counted(node)
    assert 0 < hour.seconds < DEADLINE


@pytest.mark.background("numbers", "rollouts")
async def test_a_rollouts_gate_compares_with_the_hour_before_on_the_same_node(
    polls: Polls, control: Control, node: Edge
) -> None:
    await first_release(control)
    await answers(node, 1)
    await node.until(lambda s: s["at_target"])
    for _ in range(10):
        assert (await node.call("hello"))[0] == 200
    gates = [
        {"metric": "p99", "function": "hello", "than_before": "900x", "at_least_calls": 5},
        {"metric": "error_ratio", "than_before": "1x", "at_least_calls": 5},
    ]
    number = await control.push("hello", version(2), READ)
    policy = {"bake": "0s", "rehearse": False, "gate": gates}
    await control.release(functions={"hello": number}, rollout=policy)
    await answers(node, 2)
    seen: Any = None

    async def stands(state: str) -> None:
        nonlocal seen
        async with deadline(DEADLINE):
            while (seen := await control.call("GET", "rollouts/default/2"))["state"] != state:
                await asyncio.sleep(0.05)

    for _ in range(10):
        assert (await node.call("hello"))[0] == 200
    await stands("done")
    p99, errors = seen["plan"][0]["gates"]
    assert [gate["outcome"] for gate in (p99, errors)] == ["passed", "passed"]
    assert p99["calls"] >= 5
    assert 0 < p99["before"] < 10
    assert p99["allowed"] == pytest.approx(900 * p99["before"])
    assert (errors["measured"], errors["before"]) == (0, 0)


async def test_metrics_say_how_the_node_gets_on_with_control(control: Control, node: Edge, tmp_path: Path) -> None:
    await first_release(control)
    await answers(node, 1)
    await node.until(lambda s: s["at_target"])
    async with node.http.get("/_skerry/metrics") as answer:
        text = await answer.text()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["skerry_edge_at_target"] == "1.0"
    assert 0 <= float(values["skerry_edge_control_answer_age_seconds"]) < DEADLINE
    assert values["skerry_edge_failed_syncs_total"] == "0.0"
    assert float(values["skerry_edge_credential_expiry_timestamp_seconds"]) > 1.7e9
