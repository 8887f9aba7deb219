"""Functions that start by themselves, on real workers: each tick's effect is there once, whatever ends when."""

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import orjson
import pytest
from aiohttp import web

from control.protocol import cron
from edge_runtime import wal
from edge_runtime.cli.status import render
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import Outcome, name_of
from edge_runtime.errors import SyncFailed
from tests.guests.build import guest
from tests.support.edge import Node, node, until
from tests.support.gate import http_server
from tests.support.moved_clock import MovedClock
from tests.support.programs import Faults

TABLES = ["CREATE TABLE ran (event TEXT, at TEXT, cron TEXT)"]
TICK: dict[str, Any] = {"sql": "write", "schedule": ["0 * * * *"], "config": {"SQL": "1"}}
ALL = {**TICK, "missed": "all"}
DAY = datetime(2030, 5, 6, 0, 30, tzinfo=UTC)


@pytest.fixture
async def edge(tmp_path: Path, clock: MovedClock) -> AsyncIterator[Node]:
    clock.set_day(DAY)
    async with node(tmp_path / "state") as made:
        yield made


def functions(**manifests: dict[str, Any]) -> dict[str, Any]:
    return {name: (guest("tick"), manifest) for name, manifest in manifests.items()} | {
        "q": (guest("sql"), {"sql": "write"})
    }


async def rows(edge: Node, sql: str = "SELECT at FROM ran ORDER BY rowid") -> list[Any]:
    status, _, body = await edge.call("q", orjson.dumps({"sql": sql}))
    assert status == 200, body
    found = orjson.loads(body)["rows"]
    return [row[0] if len(row) == 1 else row for row in found]


def line(edge: Node, function: str = "f", cron: str = "0 * * * *") -> dict[str, Any]:
    return next(one for one in edge.front.scheduler.status(function) if one["cron"] == cron)


def scheduled(edge: Node) -> bool:
    """Whether the front knows the lines of its release."""
    return edge.front.scheduler._known is edge.front.pool.release


async def known(edge: Node, clock: MovedClock) -> None:
    await clock.until(lambda: scheduled(edge), 0.1)


async def ended(edge: Node, clock: MovedClock, function: str = "f", cron: str = "0 * * * *") -> dict[str, Any]:
    """What the status says once no tick of a line runs or waits."""
    lines = edge.front.scheduler.lines

    def quiet() -> bool:
        of = [one for one in lines() if (one.function, one.cron) == (function, cron)]
        return scheduled(edge) and all(one.running is None and not one.waiting for one in of)

    await clock.until(quiet, 0.1)
    return line(edge, function, cron)


async def test_a_function_is_called_at_its_tick_by_headers_that_no_client_can_send(edge: Node, clock: MovedClock):
    await edge.release(functions(f=TICK), TABLES)
    await known(edge, clock)
    told = line(edge)
    assert (told["last_run"], told["last_status"], told["next_run"]) == (None, None, "2030-05-06T01:00:00Z")
    await clock.move(1_795)
    assert await rows(edge) == []
    await clock.move(10)
    told = await ended(edge, clock)
    assert await rows(edge, "SELECT event, at, cron FROM ran") == [["schedule", "2030-05-06T01:00:00Z", "0 * * * *"]]
    assert (told["last_status"], told["next_run"], told["failures"]) == ("ok", "2030-05-06T02:00:00Z", 0)
    assert told["last_run"].startswith("2030-05-06T01:00:0")
    assert told["late_seconds"] < 10
    # What a client says of itself isn't passed on, however it is written.
    said = {"Skerry-Event": "schedule", "skerry_scheduled_at": "x", "Skerry-Scheduled_At": "y", "SKERRY-CRON": "z"}
    assert (await edge.call("f", b"x", headers=said))[2] == b"||"
    async with edge.http.get("/_skerry/metrics") as answer:
        metrics = await answer.text()
    assert 'skerry_edge_schedule_failures_total{cron="0 * * * *",function="f"} 0.0' in metrics
    assert 'skerry_edge_schedule_next_run_timestamp_seconds{cron="0 * * * *",function="f"} 1.90426' in metrics
    assert 'skerry_edge_calls_total{function="f",outcome="ok"} 2.0' in metrics


async def test_what_was_done_is_known_after_a_start_and_a_day_of_missed_ticks_runs_by_the_rule(
    tmp_path: Path, clock: MovedClock
):
    clock.set_day(DAY)
    kinds = {"skip": TICK, "once": {**TICK, "missed": "once"}, "all": {**ALL, "missed_most": 5}}
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(**kinds), TABLES)
        await known(edge, clock)
        await clock.move(1_800)
        for name in kinds:
            assert (await ended(edge, clock, name))["last_status"] == "ok"
        assert len(await rows(edge)) == 3
    clock.set_day(DAY.replace(day=7))
    async with node(tmp_path / "state") as edge:
        await known(edge, clock)
        assert line(edge, "skip")["last_run"] is not None
        assert line(edge, "skip")["last_status"] == "ok"
        for name in kinds:
            await ended(edge, clock, name)
        assert [at[8:13] for at in await rows(edge)][3:].count("07T00") == 2
        assert sorted(at[8:13] for at in await rows(edge))[3:] == [
            *("06T20", "06T21", "06T22", "06T23", "07T00", "07T00")
        ]
    # And once more: nothing comes twice.
    async with node(tmp_path / "state") as edge:
        await known(edge, clock)
        for name in kinds:
            await ended(edge, clock, name)
        assert len(await rows(edge)) == 9


@pytest.mark.parametrize("point", ["edge.call.commit.before", "edge.call.commit.after"])
async def test_a_worker_that_is_killed_beside_its_commit_leaves_the_effect_once(
    tmp_path: Path, clock: MovedClock, faults: Faults, point: str
):
    clock.set_day(DAY)
    asked: list[int] = []
    async with node(tmp_path / "state") as edge:

        async def answer(_: web.Request) -> web.Response:
            # Others write while a tick asks.
            asked.append((await edge.call("q", b'{"sql":"INSERT INTO ran (at) VALUES (0)"}'))[0])
            if len(asked) == 1:
                faults.arm(point, "kill")
            return web.Response()

        async with http_server("/", answer) as url:
            asks = {"config": {"SQL": "1", "ASK": f'{{"url":"{url}"}}'}, "http": {"hosts": [url.rstrip("/")]}}
            await edge.release(functions(f={**TICK, **asks}), TABLES)
            await known(edge, clock)
            await clock.move(1_800)
            told = await ended(edge, clock)
        assert (told["last_status"], told["failures"]) == ("ok", 0)
        assert await rows(edge, "SELECT at FROM ran WHERE at <> '0'") == ["2030-05-06T01:00:00Z"]
        # What it asks of others happens at least once.
        assert asked == [200, 200]
        assert edge.front.pool.deaths == 1


@pytest.mark.parametrize("point", ["edge.call.commit.before", "edge.call.commit.after"])
async def test_a_front_that_ends_beside_a_commit_leaves_the_effect_once(
    tmp_path: Path, clock: MovedClock, faults: Faults, point: str
):
    clock.set_day(DAY)
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(f=TICK), TABLES)
        await known(edge, clock)
        faults.arm(point, "hold")
        await clock.move(1_800)
        await faults.reached(point)
        for pid in edge.workers():
            os.kill(pid, signal.SIGKILL)
        edge.front.stop()
    async with node(tmp_path / "state") as edge:
        told = await ended(edge, clock)
        assert told["last_status"] == "ok"
        assert await rows(edge) == ["2030-05-06T01:00:00Z"]


async def test_a_tick_that_fails_is_counted_noted_and_not_tried_again(tmp_path: Path, clock: MovedClock):
    clock.set_day(DAY)
    failing = {**ALL, "config": {"SQL": "1", "STATUS": "500"}}
    refusing = {**ALL, "config": {"SQL": "1", "STATUS": "404"}}
    reading = {"sql": "none", "schedule": ["0 * * * *"], "missed": "all"}
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(f=failing, g=refusing, h=reading), TABLES)
        await known(edge, clock)
        await clock.move(1_800)
        told = [await ended(edge, clock, name) for name in "fgh"]
        assert [(one["last_status"], one["failures"]) for one in told] == [
            ("answer_500", 1),
            ("answer_404", 1),
            ("ok", 0),
        ]
        shown = render(edge.front.status())
        assert "0 * * * *: ran 2030-05-06T01:00:0" in shown
        assert "Z, answer_500, 1 failure since the start; next 2030-05-06T02:00:00Z" in shown
        # 404 is an answer, so what was written is kept.
        assert len(await rows(edge)) == 1
        await clock.until(lambda: not edge.front.scheduler._notes, 0.1)
    async with node(tmp_path / "state") as edge:
        await known(edge, clock)
        assert [line(edge, name)["last_status"] for name in "fgh"] == ["failed", "failed", "ok"]
        await clock.move(60)
        assert [(await ended(edge, clock, name))["failures"] for name in "fgh"] == [0, 0, 0]
        assert len(await rows(edge)) == 1


async def test_a_tick_waits_for_a_release_and_runs_wholly_on_it(tmp_path: Path, clock: MovedClock, faults: Faults):
    clock.set_day(DAY)
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(f=TICK, g=TICK), TABLES)
        await known(edge, clock)
        clock.go()
        faults.arm("edge.commit.before", "hold")
        # The next one has other tables, and no schedule of g.
        more = ["ALTER TABLE ran ADD COLUMN more TEXT NOT NULL DEFAULT 'new'"]
        releasing = asyncio.create_task(edge.release(functions(f=TICK, g={"sql": "write"}), more))
        await faults.reached("edge.commit.before")
        # The release takes longer than a tick may be late that isn't missed.
        clock.set_day(DAY.replace(hour=1, minute=0))
        await clock.until(lambda: line(edge)["late_seconds"] > 0, 0.1)
        clock.go()
        clock.set_day(DAY.replace(hour=1, minute=10))
        faults.let_go("edge.commit.before")
        await releasing
        await known(edge, clock)
        told = await ended(edge, clock)
        assert told["late_seconds"] > 600
        assert await rows(edge, "SELECT at, more FROM ran") == [["2030-05-06T01:00:00Z", "new"]]
        assert edge.front.scheduler.status("g") == []


async def test_after_each_release_with_another_version_a_function_is_called_once(tmp_path: Path, clock: MovedClock):
    called = {"sql": "write", "on_release": True, "config": {"SQL": "1"}}
    async with node(tmp_path / "state") as edge:
        await edge.release(functions(f=called), TABLES, version=1)
        told = await ended(edge, clock, cron="")
        assert (told["last_status"], told["next_run"]) == ("ok", None)
        assert [row[:2] for row in await rows(edge, "SELECT event, cron FROM ran")] == [["release", ""]]
        # The same version is brought by another release.
        await edge.release(functions(f=called, other={"sql": "none"}), version=1)
        await ended(edge, clock, cron="")
        assert len(await rows(edge)) == 1
        await clock.move(1.5)
        await edge.release(functions(f=called), version=2)
        await ended(edge, clock, cron="")
        assert len(await rows(edge)) == 2
    async with node(tmp_path / "state") as edge:
        assert (await ended(edge, clock, cron=""))["last_status"] == "ok"
        assert len(await rows(edge)) == 2


async def test_a_call_after_a_release_comes_after_a_kill_too(tmp_path: Path, clock: MovedClock, faults: Faults):
    called = {"sql": "write", "on_release": True, "config": {"SQL": "1"}}
    async with node(tmp_path / "state") as edge:
        faults.arm("edge.call.commit.before", "hold")
        await edge.release(functions(f=called), TABLES)
        await clock.until((faults.folder / "edge.call.commit.before.held").exists, 0.1)
        for pid in edge.workers():
            os.kill(pid, signal.SIGKILL)
        edge.front.stop()
    async with node(tmp_path / "state") as edge:
        await ended(edge, clock, cron="")
        assert len(await rows(edge)) == 1


async def test_a_long_tick_takes_no_place_of_calls_and_is_not_met_by_the_next(edge: Node, clock: MovedClock):
    slow = {**ALL, "config": {"SQL": "", "SLEEP": "1500"}, "schedule": ["* * * * *"], "concurrency": 1}
    await edge.release(functions(f=slow), TABLES)
    await known(edge, clock)
    await clock.move(125)
    queues = edge.front.pool.queues
    await until(lambda: bool(queues.of("f/schedule").links))
    # Two are due, and one runs; calls have their own worker, and their own queue.
    assert sum(queues.of("f/schedule").links.values()) == 1
    assert len(edge.front.scheduler.lines()[0].waiting) == 1
    assert (await edge.call("q", b'{"sql":"SELECT 1"}'))[0] == 200
    assert sum(queues.of("f/schedule").links.values()) == 1
    await ended(edge, clock, cron="* * * * *")
    assert edge.front.pool.tallies["f"].outcomes == {"ok": 2}


async def test_a_clock_that_begins_in_2000_and_is_set(edge: Node, clock: MovedClock):
    await edge.release(functions(f=ALL), TABLES)
    await known(edge, clock)
    await clock.move(1_805)
    await ended(edge, clock)
    clock.set_day(datetime(2000, 1, 1, 0, 30, tzinfo=UTC))
    await clock.move(1_805)
    await ended(edge, clock)
    clock.set_day(DAY.replace(hour=3))
    await clock.move(2)
    await ended(edge, clock)
    assert [at[:13] for at in await rows(edge)] == ["2030-05-06T01", "2000-01-01T01", "2030-05-06T02", "2030-05-06T03"]


async def test_a_release_that_fails_leaves_the_schedule_as_it_was(edge: Node, clock: MovedClock):
    await edge.release(functions(f=TICK), TABLES)
    await known(edge, clock)
    with pytest.raises(SyncFailed):
        await edge.release(functions(f={**TICK, "schedule": ["30 * * * *"]}), ["CREATE TABLE ran (x)"])
    await clock.move(1_805)
    await ended(edge, clock)
    assert await rows(edge) == ["2030-05-06T01:00:00Z"]


async def test_a_ticks_call_runs_on_no_other_release_than_it_was_made_for(edge: Node):
    await edge.release(functions(f=TICK), TABLES)
    headers = [(b"skerry-scheduled-at", b"2030-05-06T01:00:00Z"), (b"skerry-cron", b"0 * * * *")]
    told: list[str] = []
    for generation in (edge.generation + 1, edge.generation, edge.generation):
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        call = Call("f", "POST", "/", b"", headers, "", b"", ended.set_result, generation=generation)
        edge.front.pool.submit(call)
        told.append(name_of(await ended))
    assert told == ["release_changing", "ok", "tick_done"]
    assert len(await rows(edge)) == 1


async def test_where_the_database_has_gone_back_its_ticks_have_too(edge: Node, clock: MovedClock):
    await edge.release(functions(f=ALL), TABLES)
    await known(edge, clock)
    await clock.move(1_805)
    await ended(edge, clock)
    with contextlib.closing(sqlite3.connect(edge.state.path / wal.FILE, timeout=10)) as other:
        other.execute("DELETE FROM _skerry_ticks WHERE state = 'done'")
        other.commit()
    await edge.release(functions(f=ALL))
    await known(edge, clock)
    await ended(edge, clock)
    assert await rows(edge) == ["2030-05-06T01:00:00Z", "2030-05-06T01:00:00Z"]


async def test_ticks_that_end_workers_are_cut_off_and_calls_are_not(edge: Node, clock: MovedClock):
    await edge.release({"f": (guest("overflow"), {"schedule": ["0 * * * *"]})})
    await known(edge, clock)
    await clock.move(1_800)
    told = await ended(edge, clock)
    assert told["last_status"] in ("worker_crashed", "circuit_open")
    assert told["failures"] == 1
    served = edge.front.pool.functions
    assert served["f/schedule"].breaker.opened == 1
    assert served["f"].breaker.opened == 0


async def test_a_node_that_has_lost_its_time_zones_serves_and_says_so(
    edge: Node, clock: MovedClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(cron, "zone", lambda name: UTC if name == "UTC" else unknown(name))
    berlin = {**TICK, "timezone": "Europe/Berlin"}
    await edge.release(functions(f=TICK, g=berlin), TABLES)
    await known(edge, clock)
    assert edge.front.scheduler.status("g") == []
    assert "g isn't called by its schedule: Europe/Berlin" in caplog.text
    await clock.move(1_805)
    assert (await ended(edge, clock))["last_status"] == "ok"


def unknown(name: str) -> NoReturn:
    raise cron.CronUnfit(f"{name} is no time zone")
