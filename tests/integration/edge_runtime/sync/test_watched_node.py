"""A real node's records reach who watches: those that are there, those that come, those of an outage; within bounds."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control.local.pki import Pki
from edge_runtime.sync import watch_answers
from edge_runtime.telemetry import records
from tests.support import agents
from tests.support.agents import Control, Edge
from tests.support.console import live
from tests.support.edge import until
from tests.support.live import viewing
from tests.support.releases import answers, first_release, push

Watching = Callable[..., Any]


@pytest.fixture
async def control(database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    async with agents.running_control(database_url, bucket_url, pki) as running:
        yield running


@pytest.fixture
async def edge(control: Control, tmp_path: Path) -> AsyncIterator[Edge]:
    """A node that polls."""
    await agents.joined(control, tmp_path / "edge")
    async with agents.edge(tmp_path / "edge") as running:
        await running.until(lambda status: status["at_target"] is not None)
        await known(control)
        yield running


async def known(control: Control) -> None:
    """Wait until control knows that the node can be asked."""
    await control.until(lambda node: node["protocol"] >= 2)


@pytest.fixture
def watching(control: Control) -> Watching:
    operator: Any = SimpleNamespace(url=control.url, admin=control.token, session=control.http)
    return lambda **query: viewing(operator, **query)


def line(number: int, at: float | None = None, level: str = "info") -> bytes:
    t = records.time_text(time.time() if at is None else at)
    told = {"function": "orders", "version": 1, "release": 1, "call": "c-1", "message": f"line {number}"}
    return records.encode({"t": t, "kind": "log", "level": level, **told})


def numbers(lines: list[Any]) -> list[int]:
    return [int(found["message"].split()[1]) for found in lines if found["kind"] == "log"]


async def test_what_comes_is_seen_and_nothing_is_done_when_nobody_watches(edge: Edge, watching: Watching) -> None:
    ring = edge.front.ring
    assert ring.taps == []
    async with watching(follow="true", node="edge-1", level="warning") as view:
        await until(lambda: len(ring.taps) == 1)
        ring.put(line(1))
        ring.put(line(2, level="error"))
        found = await view.message("line 2")
        assert (found["node"], found["function"]) == ("edge-1", "orders")
        assert numbers(view.seen) == [2]
    await until(lambda: ring.taps == [])


async def test_what_is_there_is_told_to_its_end(edge: Edge, watching: Watching) -> None:
    for number in range(30):
        edge.front.ring.put(line(number))
    await until(edge.front.ring.mark())
    async with watching(limit=10, function="orders") as view:
        lines = await view.rest()
    assert numbers(lines) == list(range(20, 30))
    assert [found["notice"] for found in lines if found["kind"] == "notice"] == ["begin", "left_out", "history"]
    # The node hears later than who watches that this was all.
    await until(lambda: edge.front.ring.taps == [])


async def test_what_is_there_and_what_comes_has_neither_gap_nor_double(edge: Edge, watching: Watching) -> None:
    ring, count = edge.front.ring, 400

    async def write() -> None:
        for number in range(count):
            ring.put(line(number))
            await asyncio.sleep(0.005)

    writing = asyncio.ensure_future(write())
    await asyncio.sleep(0.5)
    async with watching(follow="true", function="orders", since="0001-01-01T00:00:00Z", limit=1000) as view:
        await view.message(f"line {count - 1}")
        assert sorted(numbers(view.seen)) == list(range(count))
    await writing


async def test_what_came_while_control_was_away_is_had_when_it_is_back(
    edge: Edge, control: Control, watching: Watching
) -> None:
    ring = edge.front.ring
    async with watching(follow="true", function="orders") as view:
        await until(lambda: len(ring.taps) == 1)
        ring.put(line(1))
        await view.message("line 1")
        since = found_time(view.seen)
        await control.stop()
    ring.put(line(2))
    await control.start()
    # As `skerry logs -f` does, the operator asks from there on.
    async with watching(follow="true", function="orders", since=since) as view:
        await view.message("line 2")
        ring.put(line(3))
        await view.message("line 3")
        assert numbers(view.seen) == [1, 2, 3]


def found_time(lines: list[Any]) -> str:
    return str(next(found["t"] for found in lines if found["kind"] == "log"))


async def test_a_question_that_fails_is_not_asked_again_at_once(
    edge: Edge, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control would go on asking as fast as the node polls, and its log would fill."""
    failed = []

    def fail(*_: object) -> None:
        failed.append(1)
        raise RuntimeError("a fault of the node's own")

    monkeypatch.setattr(watch_answers.WatchAnswer, "past", fail)
    async with watching(follow="true", since="2026-01-01T00:00:00Z"):
        await until(lambda: failed)
        await asyncio.sleep(1.0)
        assert len(failed) <= 2


async def test_a_hundred_thousand_lines_are_sampled_within_bounds(
    edge: Edge, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.telemetry.watching.view.BUDGET", 200.0)
    ring = edge.front.ring
    async with watching(follow="true", function="orders", limit=1) as view:
        await until(lambda: len(ring.taps) == 1)
        for number in range(100_000):
            ring.put(line(number))
            if number % 500 == 0:
                await asyncio.sleep(0.005)

        def told() -> int:
            left_out = sum(found["count"] for found in view.seen if found.get("notice") == "sampled")
            return left_out + len(numbers(view.seen))

        await view.until(lambda _: told() >= 100_000)
    assert told() == 100_000
    shown = numbers(view.seen)
    assert 50 <= len(shown) <= 10_000
    # Of each tenth of the time some are shown.
    assert {number // 10_000 for number in shown} == set(range(10))


async def test_a_node_that_starts_again_goes_on(control: Control, tmp_path: Path, watching: Watching) -> None:
    await agents.joined(control, tmp_path / "edge")
    async with AsyncExitStack() as stack:
        async with agents.edge(tmp_path / "edge") as one:
            await one.until(lambda status: status["at_target"] is not None)
            await known(control)
            view = await stack.enter_async_context(watching(follow="true", function="orders"))
            await until(lambda: len(one.front.ring.taps) == 1)
            one.front.ring.put(line(1))
            await view.message("line 1")
        async with agents.edge(tmp_path / "edge") as other:
            other.front.ring.put(line(2))
            await view.message("line 2")


async def test_what_is_counted_of_functions_is_told_while_somebody_looks_at_the_node(
    control: Control, edge: Edge, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_answers, "COUNTS_PERIOD", 0.3)
    await first_release(control)
    await answers(edge, 1)
    await control.until(lambda node: node["capabilities"]["questions"] == ["lines", "calls", "functions"])
    operator: Any = SimpleNamespace(url=control.url, admin=control.token, session=control.http)
    calls = counted(edge)
    async with live(operator, "/nodes/edge-1") as stream:

        def shows(*texts: str) -> bool:
            part = stream.parts.get("functions", "")
            return all(text in part for text in texts)

        await stream.until(lambda _: shows(f">{calls}<", 'href="/functions/hello"'))
        assert (await edge.call("hello"))[0] == 200
        await stream.until(lambda _: shows(f">{calls + 1}<"))
        # Another release: its calls are counted apart, and those of the one before are still told.
        await push(control, 2)
        await answers(edge, 2)
        await stream.until(lambda _: shows('data-l="release">2<', 'data-l="release">1<'))
    async with watching(kind="functions", node="edge-1", limit=1) as view:
        lines = await view.rest()
    (told,) = [line for line in lines if line["kind"] == "function"]
    assert told["function"] == "hello"
    assert 0 < told["p50"] <= told["p99"] < 60
    assert [line["notice"] for line in lines if line["kind"] == "notice"] == ["begin", "left_out", "history"]
    async with watching(kind="functions", node="edge-1") as view:
        found = {line["release"]: line for line in await view.rest() if line["kind"] == "function"}
    assert {release: one.get("version", 0) for release, one in found.items()} == {2: 2, 1: 0}
    assert sum(one["calls"] for one in found.values()) == counted(edge)
    assert not any(one.get("failed") for one in found.values())


def counted(edge: Edge) -> int:
    return sum(counts.calls for counts in edge.front.pool.counted())
