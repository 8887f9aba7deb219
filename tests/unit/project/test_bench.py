"""The benchmarks' own parts: an answer that is wrong ends a run, and a missed bar ends `just bench` with a status."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench import __main__ as benchmarks
from bench import result, workerd
from bench.parts import bare_change, both, floor
from bench.parts.load import Client, Expected, WrongAnswer, request
from bench.parts.plain_client import PlainClient
from bench.parts.servers import process
from bench.parts.wrk import Load, Target, Wrk
from control.local.pki import Pki
from edge_runtime.built import parts
from tests.support.deadlines import scaled
from tests.support.ports import free_port

SENT = request("/", b"hello", [("X-Y", "z")])
LIMIT = 60.0
"""Seconds for an answer."""
GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@asynccontextmanager
async def server(*answers: bytes) -> AsyncIterator[int]:
    """Gives the answers in their turn, the last one again and again, empty for the end of the connection; its port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turn = 0
        while await reader.read(65536):
            answer = answers[min(turn, len(answers) - 1)]
            turn += 1
            if not answer:
                break
            for part in (answer[:30], answer[30:]):
                writer.write(part)
                # A second of load is no second of a processor.
                await asyncio.sleep(0.002)
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


async def test_load_counts_good_answers() -> None:
    async with server(GOOD) as port, Client(port, [(SENT, Expected(200, b"hello"))] * 4) as client:
        first, second = await client.run(0.1), await client.run(0.1)
    assert first.answers >= 4
    assert second.answers >= 4
    assert first.answers == len(first.latencies)
    assert first.rate == pytest.approx(first.answers / first.seconds)
    assert first.percentile(0) == min(first.latencies) <= first.percentile(0.99) <= max(first.latencies)


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhallo",
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 5\r\n\r\nhello",
        GOOD + GOOD,
        b"",
    ],
)
async def test_a_wrong_answer_ends_the_load(wrong: bytes) -> None:
    async def load(client: Client) -> None:
        # One run may end before the third answer, where the machine is busy.
        for _ in range(3):
            await client.run(0.2)

    async with server(GOOD, GOOD, wrong) as port, Client(port, [(SENT, Expected(200, b"hello"))]) as client:
        with pytest.raises(WrongAnswer):
            await load(client)


async def test_a_plain_client_tells_status_and_body_and_that_the_connection_was_closed() -> None:
    late = b"HTTP/1.1 503 Service Unavailable\r\nX-Y: z\r\nContent-Length: 4\r\nRetry-After: 1\r\n\r\nlate"
    async with server(GOOD, late, b"HTTP/1.1 204 No Content\r\n\r\n", b"") as port:

        def calls() -> None:
            with closing(PlainClient(port, 30.0)) as client:
                assert client.call(SENT) == (200, b"hello")
                assert client.call(SENT) == (503, b"late")
                with pytest.raises(WrongAnswer, match="204"):
                    client.call(SENT)
                with pytest.raises(WrongAnswer, match="closed"):
                    client.call(SENT)

        await asyncio.to_thread(calls)


@pytest.mark.parametrize(("ratio", "status"), [(2.0, 0), (1.99, 1), (None, 1)])
def test_a_missed_bar_and_a_run_that_fails_have_a_status(
    ratio: float | None, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(result, "FOLDER", tmp_path)

    class Ran:
        returncode = 0

    def run(*_: object, **__: object) -> Ran:
        if ratio is not None:
            result.write("poll", ratio, 2, {})
        return Ran()

    monkeypatch.setattr("subprocess.run", run)
    assert benchmarks.main(["poll"]) == status
    assert benchmarks.main(["no-such"]) == 2


def test_a_number_is_for_the_benchmark_before_it_and_long_ones_must_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(result, "FOLDER", tmp_path)
    ran: list[list[str]] = []

    class Failed:
        returncode = 1

    def run(command: list[str], **_: object) -> Failed:
        ran.append(command[2:])
        return Failed()

    monkeypatch.setattr("subprocess.run", run)
    assert benchmarks.main(["poll", "soak", "3"]) == 1
    assert ran == [["bench.poll"], ["bench.soak", "3"]]
    ran.clear()
    assert benchmarks.main([]) == 1
    assert ["bench.kill"] in ran
    assert ["bench.soak"] not in ran


STARTS_A_SERVER = """
import asyncio, sys
from pathlib import Path
from bench.parts.servers import process

async def main():
    port = int(sys.argv[2])
    arguments = ["-m", "http.server", "--bind", "127.0.0.1", str(port)]
    async with process(Path(sys.argv[1]), "server", arguments, port, {0}) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_servers_of_a_benchmark_that_is_killed_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS_A_SERVER, str(tmp_path), str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as bench_process:
        assert bench_process.stdout is not None
        server = psutil.Process(int(bench_process.stdout.readline()))
        bench_process.kill()
    server.wait(timeout=scaled(30))


async def test_the_floor_of_polls_echoes_by_controls_own_server(pki: Pki, tmp_path: Path) -> None:
    port = free_port()
    arguments = ["-m", "bench.parts.echo", str(port), str(pki.certificate), str(pki.key)]
    tls = ssl.create_default_context(cafile=str(pki.ca))
    async with (
        process(tmp_path, "echo", arguments, port, os.sched_getaffinity(0)),
        Client(port, [(SENT, Expected(200, b"hello"))], tls) as client,
    ):
        assert (await client.run(0.1)).answers > 0


async def loaded(wrk: Wrk, targets: list[Target], *, other_heads: bool = False) -> Load:
    """Load the targets for a second, again where this process, which has the servers, stood still in it."""
    while True:
        try:
            return await wrk.run(targets, 1, other_heads=other_heads)
        except WrongAnswer as wrong:
            if "0 of 0 requests failed" not in str(wrong):
                raise


@pytest.mark.skipif(shutil.which("wrk") is None, reason="scripts/bench-tools installs wrk")
async def test_wrk_loads_all_its_targets_and_counts_what_is_no_success(tmp_path: Path) -> None:
    wrk = Wrk(tmp_path, bytes(range(256)), 4)
    async with server(GOOD) as one, server(GOOD) as other, server(GOOD.replace(b"200 OK", b"500 Oh")) as bad:
        targets = [Target(one, "/"), Target(other, "/")]
        await wrk.check(targets, b"hello")
        done = await loaded(wrk, targets)
        assert done.answers > 4
        # It takes a second, or longer where this process, which has the servers, stands still meanwhile.
        assert 0 < done.p50 <= done.p99 < LIMIT
        assert done.answers / LIMIT < done.rate < 1.5 * done.answers
        with pytest.raises(WrongAnswer):
            await loaded(wrk, [Target(bad, "/")])
        with pytest.raises(WrongAnswer):
            await wrk.check([Target(bad, "/")], b"hello")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="scripts/bench-tools installs wrk")
@pytest.mark.parametrize("path", ["/a", "/a?b=1"])
async def test_wrk_can_send_another_head_in_each_request(path: str, tmp_path: Path) -> None:
    body = bytes(range(256))
    heads = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                assert await reader.readexactly(256) == body
                await asyncio.sleep(0.002)
                writer.write(GOOD)
        writer.close()

    wrk = Wrk(tmp_path, body, 4)
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listener:
        targets = [Target(listener.sockets[0].getsockname()[1], path)] * 2
        await loaded(wrk, targets)
        assert len(set(heads)) <= len(targets) < len(heads)
        heads.clear()
        await loaded(wrk, targets, other_heads=True)
    assert len(set(heads)) == len(heads) > 4
    for head in heads:
        first, _, lines = head.decode().partition("\r\n")
        assert first.startswith(f"POST {path}{'&' if '?' in path else '?'}n=")
        assert "Content-Length: 256\r\n" in lines
        assert f"X-Request-Id: 00000000-{first.split('n=')[1].split()[0]}\r\n" in lines


async def test_the_floor_of_calls_echoes_by_two_processes_and_both_end(tmp_path: Path) -> None:
    sent = [(request("/", body), Expected(200, body)) for body in (b"", b"hello", bytes(range(256)) * 16)]
    async with floor.serve(tmp_path) as served:
        front, worker = map(psutil.Process, served.pids)
        assert worker.ppid() == front.pid
        async with Client(served.port, sent * 20) as client:
            assert (await client.run(0.2)).answers >= 60
    for each in (front, worker):
        await asyncio.to_thread(each.wait, 30)


async def test_the_floor_of_large_bodies_sends_them_back_and_both_processes_end(tmp_path: Path) -> None:
    port, body = free_port(), bytes(range(250)) * 12_000
    arguments = ["-m", "bench.parts.large_echo", str(port)]
    async with process(tmp_path, "large", arguments, port, os.sched_getaffinity(0)) as front:
        [worker] = psutil.Process(front.pid).children()
        async with Client(port, [(request("/", body), Expected(200, body))]) as client:
            assert (await client.run(0.1)).answers > 0
    await asyncio.to_thread(worker.wait, 30)


async def test_the_floor_of_changes_makes_them_and_says_so(tmp_path: Path) -> None:
    async with bare_change.beside(tmp_path, ["CREATE TABLE t (n); INSERT INTO t VALUES (1);"]) as bare:
        await bare.run(["UPDATE t SET n = n + 1", "UPDATE t SET n = n * 10;"])
        with closing(sqlite3.connect(tmp_path / "bare.db")) as connection:
            assert connection.execute("SELECT n FROM t").fetchall() == [(20,)]
        with pytest.raises(AssertionError):
            await bare.run(["UPDATE no_table SET n = 1"])


def rounds_of_workerd(**changed: tuple[str, float]) -> dict[str, list[dict[str, float]]]:
    """Rounds in which each comparison of `workerd` is at its bar, but what is changed, by a factor."""
    figures = {
        "direct": {"rate": 50_000, "p50_ms": 1, "p99_ms": 6, "cpu_us": 20},
        "direct_other_heads": {"cpu_us": 20},
        "wagi": {"rate": 35_000, "cpu_us": 20 / 0.65},
        "workerd_two": {"rate": 20_000, "p99_ms": 10, "cpu_us": 56},
        "workerd_two_other_heads": {"cpu_us": 56},
        "workerd_one": {"rate": 10_000},
        "workerd_reused": {"cpu_us": 32},
        "floor": {"rate": 100_000, "cpu_us": 5},
    }
    for name, (key, factor) in changed.items():
        figures[name][key] *= factor
    return {name: [each] for name, each in figures.items()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("two_cpu_over_ours", {"workerd_two": ("cpu_us", 0.5)}),
        ("two_cpu_over_ours_other_heads", {"direct_other_heads": ("cpu_us", 2)}),
        ("p99_over_two_processes", {"workerd_two": ("p99_ms", 0.5)}),
        ("direct_cpu_over_wagi", {"wagi": ("cpu_us", 2)}),
        ("reused_cpu_over_ours", {"workerd_reused": ("cpu_us", 0.5)}),
    ],
)
def test_each_comparison_with_workerd_is_measured_by_its_bar(name: str, change: dict[str, tuple[str, float]]) -> None:
    _, met = workerd.compared(rounds_of_workerd())
    assert met == pytest.approx(dict.fromkeys(met, 1.0))
    _, met = workerd.compared(rounds_of_workerd(**change))
    assert met == pytest.approx({**dict.fromkeys(met, 1.0), name: 0.5})


def test_how_far_it_is_to_the_floor_is_told() -> None:
    told = workerd.told(rounds_of_workerd())
    assert (told["floor_over_ours"], told["cpu_over_floor"], told["p99_over_p50"]) == (2, 4, 6)


@pytest.mark.parametrize("built", [{"front": True, "worker": True}, {"front": False, "worker": True}, {"front": False}])
async def test_beside_a_node_of_which_a_part_is_compiled_there_is_one_uncompiled(
    built: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def node_alone(*_: object, **settings: str) -> AsyncIterator[SimpleNamespace]:
        pure = settings == {"SKERRY_EDGE_PURE": "1"}
        said = {name: {"compiled": compiled and not pure} for name, compiled in built.items()}
        yield SimpleNamespace(status={"built": said})

    monkeypatch.setattr(both, "node_alone", node_alone)
    async with both.nodes({}) as nodes:
        found = {name: both.parts(node) for name, node in nodes.items()}
    uncompiled = {both.UNCOMPILED: dict.fromkeys(built, False)} if any(built.values()) else {}
    assert found == {"": built} | uncompiled


def test_a_part_that_is_not_built_is_told_before_the_first_benchmark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "it isn't built; `just compile` builds it"
    said = {"front": {"compiled": True, "why": None}, "worker": {"compiled": False, "why": why}}
    monkeypatch.setattr(result, "FOLDER", tmp_path)
    monkeypatch.setattr(parts, "document", lambda: said)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=1))
    benchmarks.main(["poll"])
    assert capsys.readouterr().out.splitlines()[0] == f"bench: the worker is not compiled: {why}"
    said["worker"]["compiled"] = True
    benchmarks.main(["poll"])
    assert "compiled" not in capsys.readouterr().out
