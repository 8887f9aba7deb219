"""A change of release beside calls that take long: it waits for none that only reads, and others don't wait for it."""

import asyncio
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from edge_runtime.dispatch.pool import Hold
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames, progress_page
from tests.guests.build import guest
from tests.guests.version import SQL, version
from tests.support.deadlines import scaled
from tests.support.edge import Node, node, until
from tests.support.gate import gate
from tests.support.moved_clock import MovedClock

FIRST = [
    "CREATE TABLE generation (number INTEGER)",
    "INSERT INTO generation VALUES (1)",
    "CREATE TABLE done (name TEXT)",
]
NUMBER = 'SQL {"sql":"SELECT number FROM generation"}'
OTHER = 'SQL {"sql":"SELECT number FROM other"}'
OTHER_TABLE = ["CREATE TABLE other (number INTEGER)", "INSERT INTO other VALUES (2)"]
INSERT = """SQL {"sql":"INSERT INTO done VALUES ('x')"}"""
DONE = 'SQL {"sql":"SELECT name FROM done"}'
READ: Mapping[str, Any] = {"sql": "read"}
PATIENT: Mapping[str, Any] = {"lock_wait": 30.0, "lock_hold": 30.0, "queue_wait": 30.0}
"""On a busy machine no call is refused for its slowness."""


def functions(number: int, url: str) -> dict[str, Any]:
    """The functions of release `number`: `version` answers the number; `reads` and `writes` do what their body says."""
    http = {"hosts": [url.rstrip("/")], "methods": ["GET", "POST"], "time_limit_ms": 60_000}
    slow = {"http": http, "time_limit_ms": 60_000}
    return {
        "version": (version(number), READ),
        "reads": (guest("fetch"), {**slow, "sql": "read"}),
        "writes": (guest("fetch"), {**slow, "sql": "write", "concurrency": 2}),
    }


def schema(number: int) -> list[str]:
    return [f"UPDATE generation SET number = {number}"]


def again(edge: Node, number: int) -> frames.LocalRelease:
    """What is served, as release `number`."""
    assert edge.front.pool.release is not None
    return msgspec.structs.replace(edge.front.pool.release, number=number)


async def numbers(edge: Node) -> tuple[int, int, int]:
    """What an answer of `version` says: its release, its own number, the schema's."""
    status, headers, body = await edge.call("version")
    assert status == 200, body
    answer = orjson.loads(body)
    return int(headers["skerry-release"]), answer["version"], answer["schema"]["rows"][0][0]


async def lines(edge: Node, name: str, *asked: str) -> tuple[int, list[Any]]:
    """The release that a call of `reads` or `writes` ran on, and the answers that its lines got."""
    status, headers, body = await edge.call(name, "\n".join(asked).encode())
    assert status == 200, body
    return int(headers["skerry-release"]), [orjson.loads(line) for line in body.splitlines()]


def states(edge: Node) -> set[int]:
    """How far the calls have come that workers run."""
    return {link.seen().state for link in edge.busy()}


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which children find fault points armed."""
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("SKERRY_FAULTS", str(folder))
    return folder


async def test_a_release_waits_for_no_worker_in_the_middle_of_a_long_call(tmp_path: Path) -> None:
    """It is loaded behind the call; the release after it waits, so that a worker never has more than two."""
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=3) as edge:
        await edge.release(functions(1, held.url), FIRST)
        calling = asyncio.ensure_future(lines(edge, "reads", held.request()))
        await held.reached()
        (busy,) = edge.busy()
        crew = edge.front.supervisor
        async with asyncio.timeout(60):
            second = await crew.load(again(edge, 2), {}, {})
        assert second not in busy.serials
        assert all(second in link.serials for link in edge.front.pool.links if link is not busy and not link.spare)
        crew.swap(second)
        assert (await numbers(edge))[0] == 2
        third = asyncio.ensure_future(crew.load(again(edge, 3), {}, {}))
        await asyncio.wait([third], timeout=0.5)
        assert not third.done()
        assert (await numbers(edge))[0] == 2
        held.open.set()
        assert (await calling)[0] == 1
        crew.swap(await third)
        assert (await numbers(edge))[0] == 3
        await until(lambda: all(link.serials == {edge.front.pool.serial} for link in edge.front.pool.links))


async def test_readers_end_on_the_old_release_beside_calls_of_the_new_one(tmp_path: Path) -> None:
    """The table that one reads is dropped under it; one that has no SQL before the commit runs again on the new one."""
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=4) as edge:
        await edge.release(functions(1, held.url), FIRST)
        reading = asyncio.ensure_future(lines(edge, "reads", NUMBER, held.request(), NUMBER, OTHER))
        await held.reached(1)
        waiting = asyncio.ensure_future(lines(edge, "reads", held.request(), OTHER))
        await held.reached(2)
        second = {**functions(2, held.url), "version": (version(2, SQL.replace("generation", "other")), READ)}
        async with asyncio.timeout(60):
            await edge.release(second, [*OTHER_TABLE, "DROP TABLE generation"])
        assert await numbers(edge) == (2, 2, 2)
        assert not reading.done()
        held.open.set()
        release, answers = await reading
        assert release == 1
        assert [answers[0]["rows"], answers[2]["rows"]] == [[[1]], [[1]]]
        assert answers[3]["error"]["code"] == "sql_invalid"
        release, answers = await waiting
        assert release == 2
        assert answers[1]["rows"] == [[2]]
        assert held.asked == 3
        # The worker that the first reader had has the new schema now.
        assert [(await lines(edge, "reads", OTHER))[1][0]["rows"] for _ in range(8)] == [[[2]]] * 8


async def test_a_reader_that_has_sent_a_post_ends_on_the_old_release(tmp_path: Path) -> None:
    """Its first SQL comes after the commit, and the request isn't sent twice."""
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=2) as edge:
        await edge.release(functions(1, held.url), FIRST)
        reading = asyncio.ensure_future(lines(edge, "reads", held.request("POST"), NUMBER))
        await held.reached()
        await edge.release(functions(2, held.url), schema(2))
        assert await numbers(edge) == (2, 2, 2)
        held.open.set()
        release, answers = await reading
        assert (release, answers[1]["rows"]) == (1, [[1]])
        assert held.asked == 1


async def test_a_writer_that_has_sent_a_post_is_waited_for(tmp_path: Path) -> None:
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=2, flip_limit=60.0) as edge:
        await edge.release(functions(1, held.url), FIRST)
        writing = asyncio.ensure_future(lines(edge, "writes", held.request("POST"), INSERT))
        await held.reached()
        releasing = asyncio.ensure_future(edge.release(functions(2, held.url), schema(2)))
        await until(lambda: edge.front.pool.hold is Hold.WRITES)
        assert await numbers(edge) == (1, 1, 1)
        held.open.set()
        release, answers = await writing
        assert (release, answers[1]["changes"]) == (1, 1)
        await releasing
        assert await numbers(edge) == (2, 2, 2)
        assert held.asked == 1


async def test_a_release_waits_only_so_long_for_what_was_sent(tmp_path: Path) -> None:
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=4, flip_limit=0.1) as edge:
        await edge.release(functions(1, held.url), FIRST)
        writing = asyncio.ensure_future(edge.problem("writes", "\n".join((held.request("POST"), INSERT)).encode()))
        await held.reached()
        await edge.release(functions(2, held.url), schema(2))
        held.open.set()
        assert await writing == (503, "release_changed")
        assert held.asked == 1
        assert (await lines(edge, "reads", DONE))[1][0]["rows"] == []


async def test_who_holds_the_writer_lock_or_waits_for_it_is_waited_for(tmp_path: Path) -> None:
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=4, flip_limit=0.1) as edge:
        await edge.release(functions(1, held.url), FIRST)
        writers = [asyncio.ensure_future(lines(edge, "writes", INSERT, held.request())) for _ in range(2)]
        await held.reached()
        await until(lambda: states(edge) >= {progress_page.WRITING, progress_page.WAITING})
        releasing = asyncio.ensure_future(edge.release(functions(2, held.url), schema(2)))
        await until(lambda: edge.front.pool.hold is Hold.WRITES)
        late = asyncio.ensure_future(lines(edge, "writes", INSERT))
        await asyncio.wait([releasing], timeout=0.5)
        assert await numbers(edge) == (1, 1, 1)
        assert not releasing.done()
        held.open.set()
        for writer in writers:
            assert (await writer)[0] == 1
        await releasing
        assert (await late)[0] == 2
        assert (await lines(edge, "reads", DONE))[1][0]["rows"] == [["x"]] * 3


async def test_a_writer_that_comes_too_late_gives_its_worker_back(tmp_path: Path, faults: Path) -> None:
    """It would wait for as long as the schema change takes, and others with it."""
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=2) as edge:
        await edge.release(functions(1, held.url), FIRST)
        writing = asyncio.ensure_future(lines(edge, "writes", held.request(), INSERT))
        await held.reached()
        (faults / "edge.apply.after").write_text("hold")
        releasing = asyncio.ensure_future(edge.release(functions(2, held.url), schema(2)))
        await until((faults / "edge.apply.after.held").exists)
        held.open.set()
        await until(lambda: edge.front.pool.waiting == 1 and not edge.busy())
        assert await numbers(edge) == (1, 1, 1)
        (faults / "edge.apply.after.held").unlink()
        release, answers = await writing
        assert (release, answers[1]["changes"]) == (2, 1)
        await releasing
        assert held.asked == 2


async def test_a_function_that_may_write_reads_on_while_a_release_is_applied(tmp_path: Path, faults: Path) -> None:
    """Only a call that comes to a write waits, in no worker: as many as there are wouldn't keep readers waiting."""
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=2) as edge:
        await edge.release(functions(1, held.url), FIRST)
        (faults / "edge.apply.after").write_text("hold")
        releasing = asyncio.ensure_future(edge.release(functions(2, held.url), schema(2)))
        await until((faults / "edge.apply.after.held").exists)
        writing = [asyncio.ensure_future(lines(edge, "writes", NUMBER, INSERT)) for _ in range(6)]
        await until(lambda: len(edge.front.pool.queues.held) == 6)
        posting = asyncio.ensure_future(lines(edge, "writes", NUMBER, held.request("POST")))
        await until(lambda: len(edge.front.pool.queues.held) == 7)
        for _ in range(4):
            release, answers = await lines(edge, "writes", NUMBER, DONE)
            assert (release, answers[0]["rows"], answers[1]["rows"]) == (1, [[1]], [])
        assert not any(writer.done() for writer in writing)
        assert held.asked == 0
        (faults / "edge.apply.after.held").unlink()
        await releasing
        held.open.set()
        for writer in writing:
            release, answers = await writer
            assert (release, answers[0]["rows"], answers[1]["changes"]) == (2, [[2]], 1)
        assert (await posting)[0] == 2
        assert held.asked == 1
        assert (await lines(edge, "reads", DONE))[1][0]["rows"] == [["x"]] * 6


async def test_a_write_that_waits_too_long_is_told_how_long_the_release_may_take(tmp_path: Path, faults: Path) -> None:
    patient = {**PATIENT, "queue_wait": 0.5, "flip_limit": 1.0, "apply_limit": 4000.0}
    async with gate() as held, node(tmp_path / "state", **patient, workers=2) as edge:
        await edge.release(functions(1, held.url), FIRST)
        (faults / "edge.apply.after").write_text("hold")
        releasing = asyncio.ensure_future(edge.release(functions(2, held.url), schema(2)))
        await until((faults / "edge.apply.after.held").exists)
        # As if it had been applied for 1,000 s: it may take as long again.
        edge.front.pool._held_since -= 1000
        status, headers, body = await edge.call("writes", INSERT.encode())
        assert (status, orjson.loads(body)["code"]) == (503, "release_changing")
        assert 1000 <= int(headers["retry-after"]) < 1100
        edge.front.pool._held_since -= 4000
        status, headers, _ = await edge.call("writes", INSERT.encode())
        assert status == 503
        assert 3900 < int(headers["retry-after"]) <= 4031
        (faults / "edge.apply.after.held").unlink()
        await releasing
        # The worker may have the old release to forget before.
        edge.front.pool.settings = dataclasses.replace(edge.front.pool.settings, queue_wait=30.0)
        assert (await lines(edge, "reads", DONE))[1][0]["rows"] == []


@pytest.mark.parametrize("point", ["edge.commit.before", "edge.commit.after"])
async def test_reads_go_on_while_a_release_is_committed(tmp_path: Path, faults: Path, point: str) -> None:
    """Once it is in the file they wait for the front to know."""
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=2) as edge:
        await edge.release(functions(1, held.url), FIRST)
        (faults / point).write_text("hold")
        releasing = asyncio.ensure_future(edge.release(functions(2, held.url), schema(2)))
        await until((faults / f"{point}.held").exists)
        assert edge.front.pool.hold is Hold.COMMIT
        if point == "edge.commit.before":
            assert [await numbers(edge) for _ in range(8)] == [(1, 1, 1)] * 8
        calling = [asyncio.ensure_future(numbers(edge)) for _ in range(8)]
        if point == "edge.commit.after":
            await until(lambda: edge.front.pool.hold is Hold.ALL and edge.front.pool.waiting == 8)
        (faults / f"{point}.held").unlink()
        await releasing
        assert set(await asyncio.gather(*calling)) <= ({(1, 1, 1), (2, 2, 2)} if "before" in point else {(2, 2, 2)})
        assert await numbers(edge) == (2, 2, 2)


async def test_a_read_that_finds_the_release_that_serves_by_now_is_run_again_at_once(
    tmp_path: Path, clock: MovedClock
) -> None:
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=2) as edge:
        await edge.release(functions(1, held.url), FIRST)
        # No pause comes to its end.
        clock.stand()
        reading = asyncio.ensure_future(lines(edge, "reads", held.request(), NUMBER))
        await held.reached(1)
        await edge.release(functions(2, held.url), schema(2))
        held.open.set()
        release, answers = await asyncio.wait_for(reading, scaled(60))
        assert (release, answers[1]["rows"]) == (2, [[2]])


async def test_writers_that_wait_for_a_release_leave_room_for_readers(tmp_path: Path, faults: Path) -> None:
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=2) as edge:
        await edge.release(functions(1, held.url), FIRST)
        edge.front.pool.settings = dataclasses.replace(edge.front.pool.settings, queue_limit=8)
        (faults / "edge.apply.after").write_text("hold")
        releasing = asyncio.ensure_future(edge.release(functions(2, held.url), schema(2)))
        await until((faults / "edge.apply.after.held").exists)
        writers = [asyncio.ensure_future(edge.call("writes", INSERT.encode())) for _ in range(20)]
        await until(lambda: sum(writer.done() for writer in writers) == 16)
        assert [await numbers(edge) for _ in range(8)] == [(1, 1, 1)] * 8
        (faults / "edge.apply.after.held").unlink()
        await releasing
        assert sorted([(await writer)[0] for writer in writers]) == [200] * 4 + [503] * 16


@pytest.mark.never_retry
@pytest.mark.parametrize("point", ["edge.commit.before", "edge.commit.after"])
async def test_readers_go_on_where_the_applier_is_killed(tmp_path: Path, faults: Path, point: str) -> None:
    """Those that run end on the release that they began on, and so do those that come before the file was asked."""
    async with gate() as held, node(tmp_path / "state", **PATIENT, workers=4) as edge:
        await edge.release(functions(1, held.url), FIRST)
        reading = asyncio.ensure_future(lines(edge, "reads", NUMBER, held.request(), NUMBER))
        await held.reached(1)
        late = asyncio.ensure_future(lines(edge, "reads", held.request(), NUMBER))
        await held.reached(2)
        (faults / point).write_text("kill")
        calling = [asyncio.ensure_future(numbers(edge)) for _ in range(8)]
        serves = 2 if point == "edge.commit.after" else 1
        if serves == 2:
            await edge.release(functions(2, held.url), schema(2))
        else:
            with pytest.raises(SyncFailed) as failed:
                await edge.release(functions(2, held.url), schema(2))
            assert failed.value.code == "applier_died"
            assert failed.value.held > 0
        assert await numbers(edge) == (serves,) * 3
        held.open.set()
        release, answers = await reading
        assert (release, answers[0]["rows"], answers[2]["rows"]) == (1, [[1]], [[1]])
        release, answers = await late
        assert (release, answers[1]["rows"]) == (serves, [[serves]])
        assert set(await asyncio.gather(*calling)) <= {(1, 1, 1), (serves,) * 3}
        assert (await lines(edge, "writes", INSERT))[0] == serves
