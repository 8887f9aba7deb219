"""Each failure of a guest costs its own call, with the status and code of the table; all others go on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from edge_runtime import clock
from tests.guests.build import guest
from tests.support.edge import Node, node, until
from tests.support.gate import gate
from tests.support.lent_node import NodeLender

GUESTS = {
    "echo": guest("echo"),
    "env": guest("env"),
    "raw": guest("raw"),
    "trap": guest("trap"),
    "bounds": guest("bounds"),
    "divide": guest("divide"),
    "exit": guest("exit"),
    "overflow": guest("overflow"),
    "hog": (guest("hog"), {"memory_pages": 64}),
    "huge": (guest("huge"), {"response_limit": 200_000}),
    "loop": (guest("loop"), {"time_limit_ms": 300}),
    "sql": (guest("sql"), {"sql": "write"}),
    "slow": (guest("sql"), {"sql": "write", "time_limit_ms": 60_000}),
    "reader": (guest("sql"), {"sql": "read"}),
    "nosql": guest("sql"),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeLender]:
    notes = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"]
    made = NodeLender(tmp_path_factory.mktemp("node"), GUESTS, notes, written={"notes"}, lock_hold=4.0)
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def edge(lender: NodeLender) -> AsyncIterator[Node]:
    async with lender.lent() as lent:
        yield lent


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def count(edge: Node) -> int:
    answer = orjson.loads((await edge.call("reader", b'{"sql":"SELECT count(*) FROM notes"}'))[2])
    return int(answer["rows"][0][0])


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("trap", 502, "guest_trap"),
        ("bounds", 502, "guest_trap"),
        ("divide", 502, "guest_trap"),
        ("exit", 502, "guest_exit"),
        ("overflow", 502, "worker_crashed"),
        ("hog", 502, "guest_trap"),
        ("huge", 507, "response_too_large"),
        ("loop", 504, "time_limit"),
        ("raw", 502, "guest_response_invalid"),
    ],
)
async def test_a_failure_costs_its_own_call_alone(edge: Node, name: str, status: int, code: str) -> None:
    echoes = [edge.call("echo", b"%d" % number) for number in range(20)]
    failed, *answers = await asyncio.gather(edge.problem(name), *echoes)
    assert failed == (status, code)
    assert [(answer[0], answer[2]) for answer in answers] == [(200, b"%d" % number) for number in range(20)]
    # A worker that died has a follower at once.
    await until(lambda: len(edge.workers()) == 2)
    assert (await edge.call("echo", b"still here"))[2] == b"still here"


async def test_a_refused_memory_says_pages_and_limit(edge: Node) -> None:
    _, _, body = await edge.call("hog")
    assert "of 64 pages" in orjson.loads(body)["detail"]


async def test_a_guests_own_status_and_headers_are_its_answer(edge: Node) -> None:
    status, headers, body = await edge.call("raw", b"Status: 418 Teapot\nContent-Type: text/x-tea\nX-Pot: 1\n\nshort")
    assert (status, headers["content-type"], headers["x-pot"], body) == (418, "text/x-tea", "1", b"short")
    assert headers["skerry-release"] == "1"
    status, headers, body = await edge.call("raw", b"Status: 204\nX-Pot: 2\n\n")
    assert (status, headers["x-pot"], body) == (204, "2", b"")
    assert "content-length" not in headers


async def test_head_has_no_body(edge: Node) -> None:
    status, headers, body = await edge.call("raw", b"Content-Type: text/plain\n\n12345", method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-type"] == "text/plain"


async def test_the_guest_sees_the_request(edge: Node) -> None:
    _, _, body = await edge.call("env/a%20b/c?x=1&y=%20", method="PUT", headers={"X-One": "1"})
    seen = dict(line.split("=", 1) for line in body.decode().splitlines() if "=" in line)
    assert seen["REQUEST_METHOD"] == "PUT"
    assert seen["SCRIPT_NAME"] == "/functions/env"
    assert seen["PATH_INFO"] == "/a b/c"
    assert seen["HTTP_X_ONE"] == "1"
    assert seen["REMOTE_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("size", [0, 1, 255, 65_535, 65_536, 65_537, 300_000, 5_000_000])
async def test_bodies_of_every_size_come_back(edge: Node, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert (await edge.call("echo", body))[2] == body


async def test_an_unknown_function(edge: Node) -> None:
    assert await edge.problem("nothing") == (404, "function_unknown")
    assert await edge.problem("no%2Fthing") == (404, "function_unknown")


async def test_what_a_good_call_wrote_is_kept(edge: Node) -> None:
    before = await count(edge)
    status, _, _ = await edge.call("sql", b"""{"sql":"INSERT INTO notes (text) VALUES ('kept')"}""")
    assert status == 200
    assert await count(edge) == before + 1


@pytest.mark.parametrize("how", ["?status=500", "?status=599", "?exit=1", "?trap=1"])
async def test_what_a_failed_call_wrote_is_undone(edge: Node, how: str) -> None:
    before = await count(edge)
    status, _, _ = await edge.call(f"sql{how}", b"""{"sql":"INSERT INTO notes (text) VALUES ('gone')"}""")
    assert status >= 500
    assert await count(edge) == before
    # The writer lock is free again.
    assert (await edge.call("sql", b"""{"sql":"SELECT 1"}"""))[0] == 200


async def test_sql_is_denied_by_default(edge: Node) -> None:
    _, _, body = await edge.call("nosql", b'{"sql":"SELECT 1"}')
    assert orjson.loads(body)["error"]["code"] == "not_granted"
    _, _, body = await edge.call("reader", b'{"sql":"DELETE FROM notes"}')
    assert orjson.loads(body)["error"]["code"] == "not_granted"


async def test_a_call_that_holds_the_writer_lock_too_long_is_ended_and_undone(edge: Node) -> None:
    before = await count(edge)
    insert = b"""{"sql":"INSERT INTO notes (text) VALUES ('slow')"}"""
    assert await edge.problem("slow?sleep=20000", insert) == (504, "lock_held_too_long")
    assert await count(edge) == before
    assert (await edge.call("sql", insert))[0] == 200


async def test_waiting_for_the_writer_lock_is_no_looping(tmp_path: Path) -> None:
    """Two calls that each hold the lock four seconds, under a limit of 7.5 s for running."""
    limited = (guest("sql"), {"sql": "write", "time_limit_ms": 7500, "concurrency": 2})
    async with node(tmp_path / "state", lock_wait=60.0, lock_hold=60.0) as made:
        await made.release({"limited": limited}, ["CREATE TABLE notes (text TEXT)"])
        insert = b"""{"sql":"INSERT INTO notes (text) VALUES ('turn')"}"""
        answers = await asyncio.gather(*(made.call("limited?sleep=4000", insert) for _ in range(2)))
        assert [answer[0] for answer in answers] == [200, 200]


async def test_a_guest_that_fails_over_a_limit_of_sql_is_told_by_the_limit(edge: Node) -> None:
    large = b'{"sql":"SELECT zeroblob(9000000)"}'
    assert await edge.problem("reader?exit=1", large) == (507, "sql_answer_too_large")
    # One that goes on has seen the error, and answers for itself.
    status, _, body = await edge.call("reader", large)
    assert (status, orjson.loads(body)["error"]["code"]) == (200, "sql_answer_too_large")


async def test_waiting_for_the_writer_lock_has_a_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with gate() as held, node(tmp_path / "state", lock_wait=0.4, lock_hold=60.0) as made:
        holds = {"sql": "write", "http": held.grant, "time_limit_ms": 60_000}
        functions = {"sql": GUESTS["sql"], "holds": (guest("fetch"), holds)}
        await made.release(functions, ["CREATE TABLE notes (text TEXT)"])
        insert = """{"sql":"INSERT INTO notes VALUES ('x')"}"""
        holder = asyncio.ensure_future(made.call("holds", f"SQL {insert}\n{held.request()}".encode()))
        await held.reached()
        (keeper,) = (link.child.pid for link in made.busy())
        assert await made.problem("sql", insert.encode()) == (503, "writer_busy")
        assert f"has waited too long for the writer lock, which worker {keeper} (holds) has" in caplog.text
        held.open.set()
        assert (await holder)[0] == 200


@pytest.mark.parametrize("point", ["edge.call.commit.before", "edge.call.commit.after"])
async def test_a_worker_that_dies_in_a_commit_leaves_it_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv("SKERRY_FAULTS", str(folder))
    async with node(tmp_path / "state") as made:
        await made.release({"sql": GUESTS["sql"]}, ["CREATE TABLE notes (text TEXT)"])
        (folder / point).write_text("kill")
        insert = b"""{"sql":"INSERT INTO notes VALUES ('x')"}"""
        assert await made.problem("sql", insert) == (502, "commit_unknown")
        _, _, body = await made.call("sql", b'{"sql":"SELECT count(*) FROM notes"}')
        assert orjson.loads(body)["rows"] == [[int(point.endswith("after"))]]


async def test_a_log_of_a_guest_is_the_nodes(edge: Node, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "skerry.guest"):
        await edge.call("raw?log=hello%20log", b"Content-Type: text/plain\n\n.")
    assert "hello%20log" in caplog.text or "hello log" in caplog.text


async def test_why_a_call_failed_is_in_the_nodes_log_once_a_second_at_most(
    edge: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: began)
    edge.front.pool.tallies["raw"].logged.clear()
    with caplog.at_level("INFO", "skerry.calls"):
        for _ in range(3):
            assert await edge.problem("raw?exit=3") == (502, "guest_exit")
            assert await edge.problem("raw", b"no head") == (502, "guest_response_invalid")
            assert await edge.problem("raw/%00") == (400, "request_unfit")
    told = [record.getMessage() for record in caplog.records if record.name == "skerry.calls"]
    assert len(told) == 2
    assert "The function raw failed. It ended with the exit code 3." in told[0]
    assert told[1].endswith("[guest_response_invalid]")


async def test_the_counts_say_what_happened(edge: Node) -> None:
    assert await edge.problem("loop") == (504, "time_limit")
    assert (await edge.call("echo"))[0] == 200
    async with edge.http.get("/_skerry/metrics") as answer:
        text = await answer.text()
    assert 'skerry_edge_calls_total{function="loop",outcome="time_limit"}' in text
    # The one that has taken the place of the one that was ended may still load.
    await until(lambda: edge.front.status()["workers"]["fit"] == 2)
    async with edge.http.get("/_skerry/status") as answer:
        status = await answer.json()
    assert {f["name"] for f in status["functions"]} >= {"echo", "loop"}


async def test_a_start_before_the_first_release(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as empty:
        assert await empty.problem("echo") == (404, "function_unknown")
        async with empty.http.get("/_skerry/healthz") as answer:
            assert answer.status == 200
