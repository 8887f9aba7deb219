"""Where a call's time went, told by real workers: of slow calls, of failed ones, and where the front asks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from edge_runtime import wal
from edge_runtime.dispatch.outcomes import FOREIGN
from edge_runtime.ipc import frames
from edge_runtime.ipc.progress_page import RUNNING, WAITING
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock
from edge_runtime.telemetry.search import LineFilter, search
from tests.guests.build import guest
from tests.support.edge import Node, until
from tests.support.lent_node import NodeLender

pytestmark = pytest.mark.asyncio(loop_scope="module")
INSERT = b"""{"sql":"INSERT INTO notes (text) VALUES ('written out')"}"""


class Records:
    """The records of a node's calls, as they go to its ring."""

    def __init__(self, edge: Node) -> None:
        self.edge = edge
        self._made: list[Any] = []
        edge.front.ring.taps.append(self._tap)

    def _tap(self, line: bytes) -> None:
        record = orjson.loads(line)
        if record["kind"] == "call":
            self._made.append(record)

    def take(self) -> list[Any]:
        """Those that are new."""
        self.edge.front.call_records.make()
        made, self._made[:] = list(self._made), []
        return made

    async def of(self, path: str, body: bytes = b"") -> Any:
        """The record of a call."""
        self.take()
        await self.edge.call(path, body)
        (made,) = self.take()
        return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[str]:
    async def answer(_: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return web.Response(text="x")

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory, site: str) -> AsyncIterator[NodeLender]:
    guests = {
        "sql": (guest("sql"), {"sql": "write", "concurrency": 2}),
        "reader": (guest("sql"), {"sql": "read"}),
        "trap": guest("trap"),
        "loop": (guest("loop"), {"sql": "read", "time_limit_ms": 100}),
        "fetch": (guest("fetch"), {"http": {"hosts": [site], "time_limit_ms": 5000}, "sql": "write"}),
        "slow": guest("slow"),
        "echo": guest("echo"),
    }
    notes = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"]
    settings = {"lock_wait": 60.0, "lock_hold": 60.0}
    made = NodeLender(tmp_path_factory.mktemp("node"), guests, notes, written={"notes"}, **settings)
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def edge(lender: NodeLender) -> AsyncIterator[Node]:
    async with lender.lent() as lent:
        yield lent


@pytest.fixture
def records(edge: Node) -> Iterator[Records]:
    made = Records(edge)
    yield made
    edge.front.ring.taps.remove(made._tap)


async def test_sql_commit_and_guest_of_a_call(records: Records) -> None:
    body = b"\n".join([INSERT, INSERT, b"""{"sql":"SELECT text FROM notes WHERE id = ?","params":[1]}"""])
    made = await records.of("sql?sleep=30", body)
    assert {k: made[k] for k in ("kind", "function", "version", "release", "outcome", "status", "method", "path")} == {
        "kind": "call",
        "function": "sql",
        "version": 1,
        "release": 1,
        "outcome": "ok",
        "status": 200,
        "method": "POST",
        "path": "/functions/sql",
    }
    assert set(made["times"]) == {"queue", "guest", "lock", "sql", "http", "commit"}
    assert sum(made["times"].values()) == pytest.approx(made["seconds"], abs=0.001)
    assert made["times"]["guest"] >= 0.09
    assert made["times"]["commit"] > 0
    told = {entry["statement"]: entry["count"] for entry in made["sql"]}
    assert told == {
        "BEGIN": 1,
        "INSERT INTO notes (text) VALUES (?)": 2,
        "SELECT text FROM notes WHERE id = ?": 1,
    }


async def test_the_wait_for_the_writer_lock(edge: Node, records: Records) -> None:
    records.take()
    with contextlib.closing(WriterLock.open(edge.state.path / wal.FILE.parent / LOCK_NAME)) as lock:
        lock.acquire()
        call = asyncio.ensure_future(edge.call("sql", INSERT))
        await until(lambda: any(link.seen().state == WAITING for link in edge.front.pool.links))
        await asyncio.sleep(0.05)
    assert (await call)[0] == 200
    (made,) = records.take()
    assert made["times"]["lock"] >= 0.05


async def test_http_of_a_call(records: Records, site: str) -> None:
    made = await records.of("fetch", orjson.dumps({"url": f"{site}/secret/path?token=secret"}))
    assert made["times"]["http"] >= 0.05
    assert [(entry["host"], entry["count"]) for entry in made["http"]] == [("127.0.0.1", 1)]
    assert "secret" not in str(made)


@pytest.mark.parametrize(
    ("path", "outcome", "status", "part"),
    [
        ("trap", "guest_trap", 502, "guest"),
        ("sql?status=503", "answer_5xx", 503, "guest"),
        ("loop", "time_limit", 504, "worker"),
        ("sql?trap=1", "guest_trap", 502, "sql"),
    ],
)
async def test_a_failed_call_has_a_record(records: Records, path: str, outcome: str, status: int, part: str) -> None:
    made = await records.of(path, INSERT if path.startswith("sql") else b"")
    assert (made["outcome"], made["status"]) == (outcome, status)
    assert part in made["times"]
    assert made["times"][part] > 0


async def test_a_quick_call_tells_nothing_unless_the_front_asks(edge: Node, records: Records) -> None:
    for _ in range(40):
        assert (await edge.call("echo", b"x"))[0] == 200
        records.take()
    tally = edge.front.pool.tallies["echo"]
    assert tally.slow > 0
    submit, seen = edge.front.app.submit, []

    def asked(call: Any) -> None:
        call.timed = bool(seen)
        seen.append(call)
        submit(call)

    edge.front.app.submit = asked
    try:
        for _ in range(2):
            assert (await edge.call("echo", b"x"))[0] == 200
        assert (await edge.call("reader", b'{"sql":"SELECT 1"}'))[0] == 200
    finally:
        edge.front.app.submit = submit
    assert seen[0].times is None
    assert seen[1].times.steps == []
    assert [seen[2].times.texts[step.text] for step in seen[2].times.steps] == ["BEGIN", "SELECT ?"]


async def test_a_worker_that_tells_nonsense_is_ended(edge: Node) -> None:
    call = asyncio.ensure_future(edge.call("slow?ms=60000"))
    # One that its worker hasn't begun would be given to another worker.
    await until(lambda: any(k.jobs and k.seen().state == RUNNING for k in edge.front.pool.links))
    link = next(k for k in edge.front.pool.links if k.jobs and k.seen().state == RUNNING)
    link.receive(link.jobs[0].id, frames.TIMES, b"", b"nonsense")
    assert link.killed == FOREIGN
    assert (await call)[0] == 502


async def test_the_nodes_ring_has_slow_and_failed_calls_by_their_ids(edge: Node) -> None:
    headers = {"X-Request-Id": "of-a-test.1"}
    assert (await edge.call("trap", b"", headers=headers))[0] == 502
    wanted = LineFilter(kinds=("call",), calls=("of-a-test.1",))

    def found() -> list[bytes]:
        return search(edge.front.ring.folder, wanted).lines

    await until(found)
    (line,) = found()
    made = orjson.loads(line)
    assert (made["outcome"], made["call"], list(made["times"])) == ("guest_trap", "of-a-test.1", ["queue", "guest"])
