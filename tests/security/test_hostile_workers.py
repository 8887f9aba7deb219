"""What a node makes of workers that are in the hands of others: it believes nothing that they say beyond what it can
check, serves everybody else, and has them gone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from edge_runtime.dispatch import supervisor
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.ipc import frames, progress_page
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.wal import Pressure
from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.never_retry]

LIMITED = {"time_limit_ms": 300}
FUNCTIONS = {
    "echo": guest("echo"),
    "sql": (guest("sql"), {"sql": "write", "concurrency": 2}),
    "evil": (guest("echo"), LIMITED),
    "evil-sql": (guest("echo"), {**LIMITED, "sql": "write"}),
}
INSERT = b"""{"sql":"INSERT INTO notes (text) VALUES ('x')"}"""
AHEAD = 2**63 - 1
STALL = 0.25
"""Seconds of the processor that the front may take for one turn of its loop, whatever a worker does."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ZygoteClient, "PROGRAM", "tests.support.hostile_workers")
        async with node(tmp_path_factory.mktemp("node"), workers=2, lock_wait=1.0) as edge:
            await edge.release(FUNCTIONS, ["CREATE TABLE notes (text TEXT)"])
            yield edge


@pytest_asyncio.fixture(loop_scope="module")
async def edge(made: Node) -> AsyncIterator[Node]:
    """The node, whose functions nobody has cut off, with another client, none of whose calls fails; no child of its
    zygote is left that it doesn't know."""
    for served in made.front.pool.functions.values():
        served.breaker = Breaker()
    await until(lambda: len(made.workers()) == 2 and bool(made.spares()))
    over, longest = asyncio.Event(), 0.0

    async def others() -> None:
        while not over.is_set():
            status, _, body = await made.call("echo", b"well")
            assert (status, body) == (200, b"well")
            await asyncio.sleep(0.005)

    async def turns() -> None:
        nonlocal longest
        before = time.thread_time()
        while not over.is_set():
            await asyncio.sleep(0.01)
            now = time.thread_time()
            longest, before = max(longest, now - before), now

    async with asyncio.TaskGroup() as group:
        group.create_task(others())
        group.create_task(turns())
        yield made
        await until(lambda: len(made.workers()) == 2 and bool(made.spares()))
        over.set()
    assert longest < STALL
    await until(lambda: children(made) <= {link.child.pid for link in made.front.pool.links})


def children(edge: Node) -> set[int]:
    """The zygote's children."""
    zygote = edge.front.processes.pid
    return {int(pid) for pid in Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()}


async def attack(edge: Node, what: str, *arguments: Any, name: str = "evil", method: str = "POST") -> tuple[int, str]:
    """Status and code of a call whose worker does that; the code is empty where it is answered."""
    async with deadline(60):
        status, headers, body = await edge.call(name, msgspec.json.encode([what, *arguments]), method)
    is_problem = headers.get("content-type") == "application/problem+json"
    return status, json.loads(body)["code"] if is_problem else ""


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([(200, "", "", 1)], id="another request"),
        pytest.param([(100, "", "")], id="continue"),
        pytest.param([(frames.LOG, "", "x" * 20_000)], id="a log beyond its limit"),
        pytest.param([(frames.LOG, "", "x"), (frames.LOG, "", "x")], id="two logs"),
        pytest.param([(frames.DENIED, "", '{"sql":18446744073709551615}')], id="denied too often"),
        pytest.param([(frames.FAULT, "", '{"code":"%s","message":"","status":502}' % ("x" * 5000))], id="a long code"),
        pytest.param([(200, "x: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "")], id="a second response"),
        pytest.param([(200, "Transfer-Encoding: chunked\r\n", "0\r\n\r\n")], id="transfer-encoding"),
        pytest.param([(200, "content-length: 1\r\ncontent-length: 2\r\n", "")], id="content-length twice"),
        pytest.param([(204, "", "body")], id="a body where none is"),
    ],
)
async def test_what_no_honest_worker_says_ends_its_call_and_the_worker(edge: Node, said: list[Any]) -> None:
    before, answers = edge.front.pool.deaths, [(204, "", "")]
    assert await attack(edge, "say", *said, *answers) == (502, "worker_crashed")
    assert edge.front.pool.deaths == before + 1
    assert edge.front.pool.functions["evil"].breaker._deaths
    async with edge.http.get("/_skerry/status") as answer:
        assert answer.status == 200
    async with edge.http.get("/_skerry/metrics") as answer:
        assert "made_up" not in await answer.text()


async def test_what_a_worker_says_after_its_answer_is_held_against_the_function_too(edge: Node) -> None:
    breaker = edge.front.pool.functions["evil"].breaker
    async with deadline(60):
        # Where the worker is given another call meanwhile, it isn't known who ended it.
        while not breaker._deaths:
            assert (await attack(edge, "say", (204, "", ""), (204, "", "")))[0] == 204
            await until(lambda: len(edge.workers()) == 2)


async def test_codes_that_nobody_knows_are_one(edge: Node) -> None:
    for code in ("made_up", "x" * 64, ""):
        fault = json.dumps({"code": code, "message": "It says so.", "status": 599})
        assert await attack(edge, "say", (frames.FAULT, "", fault)) == (500, "internal")
    assert {*edge.front.pool.tallies["evil"].outcomes} <= {"worker_crashed", "internal", "ok", "time_limit"}


async def test_a_head_that_is_longer_than_its_frame_sends_nothing_of_others(edge: Node) -> None:
    status, code = await attack(edge, "header", 10, 200, 5000, "x: y\r\nabcd")
    assert (status, code) == (502, "worker_crashed")
    for length, kind in ((2**32 - 1, 200), (2**27 + 1, 200), (2**27, frames.LOG), (2000, frames.DENIED)):
        assert await attack(edge, "header", length, kind, 0, "") == (502, "worker_crashed")


@pytest.mark.parametrize(
    ("kind", "body"),
    [(frames.LOG, "a\n"), (frames.DENIED, '{"sql":1}'), (frames.READY, "")],
)
async def test_a_flood_of_small_frames_stops_nobody(edge: Node, kind: int, body: str) -> None:
    assert await attack(edge, "repeat", 100_000, kind, body) == (502, "worker_crashed")


@pytest.mark.parametrize(
    "written",
    [
        pytest.param((AHEAD, 0, 0, progress_page.RUNNING), id="begins later"),
        pytest.param((0, AHEAD, 0, progress_page.RUNNING), id="has waited for ever"),
        pytest.param((AHEAD, AHEAD, AHEAD, progress_page.WAITING), id="waits later"),
        pytest.param((AHEAD, AHEAD, AHEAD, progress_page.COMMITTING), id="commits later"),
        pytest.param((AHEAD, AHEAD, AHEAD, 0xFFFF_FFFF), id="in no state"),
        pytest.param((0, 0, 0, progress_page.RUNNING, 0), id="another request"),
        pytest.param((0, 0, 0, progress_page.IDLE, progress_page.NONE), id="no request"),
    ],
)
async def test_no_time_that_is_written_to_the_page_lets_a_call_run_on(edge: Node, written: tuple[int, ...]) -> None:
    began = time.monotonic()
    status, _ = await attack(edge, "page", *written)
    assert status in (502, 504)
    assert time.monotonic() - began < 10


async def test_a_page_that_changes_all_the_time_stops_nobody(edge: Node) -> None:
    assert (await attack(edge, "spin"))[0] in (502, 504)


async def test_a_worker_whose_main_thread_has_ended_is_killed(edge: Node) -> None:
    assert await attack(edge, "end_alone") == (502, "worker_crashed")


async def test_a_worker_of_which_only_other_threads_are_left_is_ended(
    edge: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """The system says of such a process that it has no memory."""
    before = edge.front.pool.deaths
    assert (await attack(edge, "leave"))[0] == 204
    await until(lambda: edge.front.pool.deaths > before)
    assert "its main thread has ended, and another one goes on: it is killed" in caplog.text


@pytest.mark.parametrize("holds", [False, True])
async def test_a_worker_that_closes_its_socket_is_killed(edge: Node, holds: bool) -> None:
    assert await attack(edge, "close", holds, name="evil-sql") == (502, "worker_crashed")
    assert edge.front.pool.functions["evil-sql"].breaker._deaths
    assert (await edge.call("sql", INSERT))[0] == 200


@pytest.mark.parametrize("dies", [False, True])
async def test_a_worker_cannot_make_a_release_fail(edge: Node, monkeypatch: pytest.MonkeyPatch, dies: bool) -> None:
    """By what it says of the release's modules, or by its end; a new one is asked."""
    monkeypatch.setattr(supervisor, "LOAD_TRIES", 1)
    before = edge.front.pool.deaths
    assert (await attack(edge, "spoil", dies))[0] == 204
    await edge.release(FUNCTIONS)
    await until(lambda: edge.front.pool.deaths == before + 1)


async def test_a_worker_that_locks_what_readers_share_is_ended(edge: Node, caplog: pytest.LogCaptureFixture) -> None:
    assert (await attack(edge, "exclude"))[0] == 204
    await until(lambda: "it has the database locked, and has no call that may: it is killed" in caplog.text)
    assert (await edge.call("sql", INSERT))[0] == 200


async def test_a_worker_that_reads_on_while_the_log_is_full_is_ended(
    edge: Node, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await attack(edge, "read"))[0] == 204

    def told() -> bool:
        edge.front.pool.pressure = Pressure.WAIT
        return "it reads from the database, and has no call: it is killed" in caplog.text

    await until(told)


async def test_a_worker_with_more_locks_than_can_be_looked_through_is_ended(
    edge: Node, caplog: pytest.LogCaptureFixture
) -> None:
    assert await attack(edge, "crowd", 1_000, name="evil-sql") == (502, "worker_crashed")
    assert "locks on files, or more: it is killed" in caplog.text


async def test_a_worker_has_no_descriptors_under_way(edge: Node) -> None:
    """All processes of a user may have so many together: the zygote couldn't hand a new child's to the front."""
    processes = edge.front.processes
    zygotes, attacking = processes.zygotes, asyncio.ensure_future(attack(edge, "hand_over"))
    while not attacking.done():
        (await processes.birth("compiler")).close()
    assert await attacking == (204, "")
    assert processes.zygotes == zygotes


@pytest.mark.parametrize("gives_back", [False, True])
async def test_a_worker_that_denies_that_it_has_begun_a_call_has_ended_by_it(edge: Node, gives_back: bool) -> None:
    before = edge.front.pool.deaths
    assert await attack(edge, "deny", gives_back) == (502, "worker_crashed")
    assert edge.front.pool.deaths - before == (3 if gives_back else 1)
    assert edge.front.pool.functions["evil"].breaker._deaths


async def test_a_worker_that_keeps_the_writer_lock_is_named_and_ended(
    edge: Node, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await attack(edge, "hold", name="evil-sql"))[0] == 204
    async with deadline(60):
        while "it holds the writer lock, and has no call that may: it is killed" not in caplog.text:
            # One of them comes to the worker that keeps it.
            await asyncio.gather(*(edge.call("sql", INSERT) for _ in range(2)))
    assert (await edge.call("sql", INSERT))[0] == 200
