"""A node's local HTTP: who may call, how much, how long they wait, and what becomes of clients that go away."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.release.compiler import Compiler
from tests.guests.build import guest
from tests.support.edge import Node, node, until

FUNCTIONS = {
    "echo": guest("echo"),
    "env": guest("env"),
    "slow": (guest("sql"), {"sql": "read", "time_limit_ms": 60_000}),
    "loop": (guest("loop"), {"time_limit_ms": 60_000}),
}
SLOW = b'{"sql":"SELECT 1"}'


@contextlib.asynccontextmanager
async def serving(path: Path, **settings: Any) -> AsyncIterator[Node]:
    async with node(path / "state", **settings) as edge:
        await edge.release(FUNCTIONS)
        yield edge


class Raw:
    """A connection that sends what no client library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(lines[0].split()[1]), headers, body

    async def ended(self) -> bool:
        """The node closes the connection."""
        async with asyncio.timeout(60):
            try:
                while await self.reader.read(65_536):
                    pass
            except ConnectionError:
                pass
            return True


@contextlib.asynccontextmanager
async def raw(edge: Node) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.front.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(path: str, body: bytes = b"", host: str = "localhost", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


# Who may call


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("LOCALHOST", 200),
        ("LOCALHOST:80", 200),
        ("localhost ", 200),
        ("127.0.0.1", 200),
        ("[::1]:99", 200),
        ("node.internal:5", 200),
        ("evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("", 403),
    ],
)
async def test_on_loopback_the_host_is_checked(tmp_path: Path, host: str, status: int) -> None:
    async with serving(tmp_path, hosts=("Node.internal",)) as edge, raw(edge) as connection:
        await connection.send(post("/functions/echo", b"x", host))
        answered, _, body = await connection.answer()
        assert answered == status
        assert status == 200 or orjson.loads(body)["code"] == "host_refused"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost", 200),
        ("http://localhost:3000", 403),
        ("https://node.internal", 403),
        ("http://[::1]:80", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_a_web_page_must_be_of_the_nodes_origin(tmp_path: Path, origin: str, status: int) -> None:
    async with serving(tmp_path, hosts=("node.internal",)) as edge, raw(edge) as connection:
        await connection.send(post("/functions/echo", b"x", more=f"origin: {origin}\r\n"))
        answered, _, body = await connection.answer()
        assert answered == status
        assert status == 200 or orjson.loads(body)["code"] == "origin_refused"


async def test_a_page_that_the_manifest_names_is_answered_by_cors(tmp_path: Path) -> None:
    """The preflight by the node alone, and each answer, errors too, with the headers that let the page read it."""
    page, token = "https://app.example", "a-long-enough-secret"
    headers = {"Origin": page, "Sec-Fetch-Site": "cross-site", "Authorization": f"Bearer {token}"}
    cors = {"origins": [page], "methods": ["POST"], "headers": ["Authorization"], "credentials": True, "max_age": 9}
    async with node(tmp_path / "state", token=token, body_limit=100) as edge:
        # This guest's answer is its body, header lines and all.
        await edge.release({"raw": (guest("raw"), {"cors": cors}), "none": guest("raw")})
        asked = {**headers, "Access-Control-Request-Method": "POST"}
        del asked["Authorization"]
        status, told, body = await edge.call("raw", method="OPTIONS", headers=asked)
        assert (status, body) == (204, b"")
        assert {name.lower(): value for name, value in told.items() if name.lower() != "date"} == {
            "access-control-allow-origin": page,
            "access-control-allow-credentials": "true",
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "Authorization",
            "access-control-max-age": "9",
            "vary": "origin, access-control-request-method, access-control-request-headers",
        }
        assert edge.front.pool.tallies["raw"].outcomes == {}
        assert (await edge.call("none", method="OPTIONS", headers=asked))[0] == 403
        own = b"Content-Type: text/plain\nAccess-Control-Allow-Origin: *\n\nanswer"
        for sent, code in ((headers, 200), ({**headers, "Authorization": "Bearer x"}, 401)):
            status, told, _ = await edge.call("raw", own, headers=sent)
            assert status == code
            assert told.getall("access-control-allow-origin") == [page]
            assert told.getall("vary") == ["origin"]
        status, told, _ = await edge.call("raw", b"x" * 101, headers=headers)
        assert (status, told["access-control-allow-origin"]) == (413, page)
        # Another method is refused, and so are those to whom the page doesn't belong.
        assert (await edge.call("raw", method="PUT", headers=headers))[0] == 403
        assert (await edge.call("none", headers=headers))[0] == 403
        # A program's answer may be kept by a cache, which must not give it to that page.
        status, told, _ = await edge.call("raw", own, headers={"Authorization": f"Bearer {token}"})
        assert (status, told.getall("access-control-allow-origin"), told["vary"]) == (200, ["*"], "origin")


async def test_a_node_with_a_token_asks_for_it(tmp_path: Path) -> None:
    token = "a-long-enough-secret"
    async with serving(tmp_path, token=token) as edge:
        assert await edge.problem("echo") == (401, "token_needed")
        status, headers, _ = await edge.call("echo", headers={"Authorization": "Bearer a-long-enough-secreT"})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert (await edge.call("echo", headers={"Authorization": f"bearer  {token}"}))[0] == 200
        for wrong in (token, f"Basic {token}", "Bearer", f"Bearer {token} x"):
            assert (await edge.call("echo", headers={"Authorization": wrong}))[0] == 401
        status, _, body = await edge.call("env", headers={"Authorization": f"Bearer {token}"})
        assert status == 200
        # The node's own secret is none of a guest's business.
        assert token not in body.decode()
        for page, expected in (("status", 401), ("metrics", 401), ("healthz", 200)):
            async with edge.http.get(f"/_skerry/{page}") as answer:
                assert answer.status == expected


async def test_no_secret_reaches_the_processes_that_run_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_EDGE_TOKEN", "a-long-enough-secret")
    async with node(tmp_path / "state", token="a-long-enough-secret") as edge:
        for pid in (edge.front.processes.pid, *edge.workers()):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"PATH=" in environment
            assert b"a-long-enough-secret" not in environment
            assert b"a-long-enough-secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_children_die_with_their_parents_and_have_limits(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        worker = next(iter(edge.workers()))
        limits = Path(f"/proc/{worker}/limits").read_text()
        rows = {line[:26].strip(): line[26:47].strip() for line in limits.splitlines()}
        assert rows["Max core file size"] == "0"
        assert rows["Max open files"] == "256"
        # Else a guest could leave its sandbox.
        assert rows["Max address space"] == "unlimited"
        assert "NoNewPrivs:\t1" in Path(f"/proc/{worker}/status").read_text()
        family = [edge.front.processes.pid, *edge.workers()]
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


async def test_without_a_token_an_authorization_is_the_functions(tmp_path: Path) -> None:
    async with serving(tmp_path) as edge:
        _, _, body = await edge.call("env", headers={"Authorization": "Bearer of-the-application"})
        assert "HTTP_AUTHORIZATION=Bearer of-the-application" in body.decode()


async def test_other_paths_and_methods(tmp_path: Path) -> None:
    async with serving(tmp_path) as edge:
        for method, path, expected in (
            ("GET", "/", 404),
            ("GET", "/functions", 404),
            ("GET", "/_skerry/secret", 404),
            ("POST", "/_skerry/status", 405),
            ("DELETE", "/functions/echo", 200),
        ):
            async with edge.http.request(method, path) as answer:
                assert answer.status == expected, (method, path)


# How much


async def test_bodies_have_a_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, body_limit=100_000) as edge:
        assert (await edge.call("echo", b"x" * 100_000))[0] == 200
        async with raw(edge) as connection:
            # Told by the head alone, before the body.
            await connection.send(post("/functions/echo").replace(b"length: 0", b"length: 100001"))
            status, headers, body = await connection.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert orjson.loads(body)["code"] == "body_too_large"
        async with raw(edge) as connection:
            await connection.send(
                b"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            with contextlib.suppress(ConnectionError):
                for _ in range(4):
                    await connection.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
            status, _, body = await connection.answer()
            assert (status, orjson.loads(body)["code"]) == (413, "body_too_large")
        assert edge.front.server.shared.memory.held == 0


async def test_large_bodies_pass_whole_and_beside_small_ones(tmp_path: Path) -> None:
    body = b"".join(b"%08d" % number for number in range(900_000))
    async with serving(tmp_path) as edge, raw(edge) as connection:
        await edge.call("echo", b"the first")
        small = asyncio.ensure_future(asyncio.gather(*(edge.call("echo", b"%d" % k) for k in range(200))))
        await connection.send(post("/functions/echo").replace(b"length: 0", b"length: %d" % len(body)) + body)
        assert (await connection.answer())[2] == body
        head = b"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        sizes = [1, 100_000, 7, 65_536, 3000, 250_000] * 17
        places = [0, *itertools.accumulate(sizes)]
        cut = [body[a:b] for a, b in itertools.pairwise([*places, len(body)])]
        await connection.send(head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut) + b"0\r\n\r\n")
        assert (await connection.answer())[2] == body
        assert [answer[2] for answer in await small] == [b"%d" % k for k in range(200)]
        assert edge.front.server.shared.memory.held == 0


async def test_all_bodies_together_have_a_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1, body_memory=150_000) as edge:
        first = asyncio.ensure_future(edge.call("slow?sleep=5000", SLOW + b"\n" * 100_000))
        await until(lambda: edge.front.server.shared.memory.held > 100_000)
        assert await edge.problem("echo", b"x" * 60_000) == (503, "body_memory")
        assert (await first)[0] == 200
        assert (await edge.call("echo", b"x" * 60_000))[0] == 200


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async with serving(tmp_path, body_wait=0.3) as edge:
        for part in (b"", b"half"):
            async with raw(edge) as connection:
                await connection.send(post("/functions/echo").replace(b"length: 0", b"length: 10") + part)
                status, headers, body = await connection.answer()
                assert (status, headers["connection"]) == (408, "close")
                assert orjson.loads(body)["code"] == "body_timeout"


async def test_heads_have_limits(tmp_path: Path) -> None:
    async with serving(tmp_path) as edge:
        async with raw(edge) as connection:
            await connection.send(post("/functions/echo", more="".join(f"x-{k}: 1\r\n" for k in range(200))))
            status, _, body = await connection.answer()
            assert (status, orjson.loads(body)["code"]) == (431, "head_too_large")
            assert await connection.ended()
        async with raw(edge) as connection:
            await connection.send(post("/functions/echo", more=f"x-long: {'y' * 40_000}\r\n"))
            assert (await connection.answer())[0] == 431
        async with raw(edge) as connection:
            # One line that doesn't end: the parser never tells of it.
            with contextlib.suppress(ConnectionError):
                await connection.send(b"POST /functions/echo HTTP/1.1\r\nx: " + b"y" * 2_000_000)
            assert await connection.ended()
        async with raw(edge) as connection:
            await connection.send(b"nonsense\r\n\r\n")
            status, headers, _ = await connection.answer()
            assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert (await edge.call("echo", b"still here"))[0] == 200


async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.web.connection.HEAD_WAIT", 1.0)
    monkeypatch.setattr("edge_runtime.web.server.SWEEP", 0.05)
    async with serving(tmp_path) as edge:
        async with raw(edge) as silent, raw(edge) as slow:
            await slow.send(b"POST /functions/echo HTTP/1.1\r\nhost: lo")
            assert await silent.ended()
            assert await slow.ended()
        async with raw(edge) as kept:
            await kept.send(post("/functions/echo", b"1"))
            assert (await kept.answer())[2] == b"1"
            await asyncio.sleep(1.5)
            # Between two requests there is no hurry.
            monkeypatch.setattr("edge_runtime.web.connection.KEEP_ALIVE", 0.3)
            await kept.send(post("/functions/echo", b"2"))
            assert (await kept.answer())[2] == b"2"
            # But there is an end.
            assert await kept.ended()


async def test_pipelined_requests_are_answered_in_their_order_up_to_a_limit(tmp_path: Path) -> None:
    async with serving(tmp_path) as edge:
        async with raw(edge) as connection:
            await connection.send(b"".join(post("/functions/echo", b"%d" % k) for k in range(6)))
            assert [(await connection.answer())[2] for _ in range(6)] == [b"%d" % k for k in range(6)]
        async with raw(edge) as connection:
            with contextlib.suppress(ConnectionError):
                await connection.send(post("/functions/echo", b"x") * 5000)
            assert await connection.ended()
        assert (await edge.call("echo", b"still here"))[0] == 200


# How long


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1, queue_limit=3) as edge:
        # The first one stays until the others are in the queue, and the one that is refused has come.
        running = [asyncio.ensure_future(edge.call("slow?sleep=4000", SLOW))]
        await until(lambda: any(link.jobs for link in edge.front.pool.links))
        running += [asyncio.ensure_future(edge.call("slow?sleep=5", SLOW)) for _ in range(3)]
        await until(lambda: edge.front.pool.waiting == 3)
        status, headers, body = await edge.call("echo")
        assert (status, headers["retry-after"], orjson.loads(body)["code"]) == (503, "1", "queue_full")
        assert [answer[0] for answer in await asyncio.gather(*running)] == [200] * 4


async def test_a_call_waits_only_so_long(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1, queue_wait=0.3) as edge:
        running = asyncio.ensure_future(edge.call("slow?sleep=4000", SLOW))
        await until(lambda: any(link.jobs for link in edge.front.pool.links))
        assert await edge.problem("echo") == (503, "queue_timeout")
        assert (await running)[0] == 200


async def test_a_call_waits_only_so_long_for_a_release(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1, queue_wait=0.3) as edge:
        edge.front.pool.hold_all()
        assert await edge.problem("echo") == (503, "release_changing")
        edge.front.pool.let_go()
        assert (await edge.call("echo"))[0] == 200


async def test_first_come_first_served(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as edge:
        order: list[int] = []

        async def one(number: int) -> None:
            await edge.call("slow?sleep=5", SLOW)
            order.append(number)

        first = asyncio.ensure_future(edge.call("slow?sleep=4000", SLOW))
        await until(lambda: any(link.jobs for link in edge.front.pool.links))
        tasks = []
        for number in range(10):
            tasks.append(asyncio.ensure_future(one(number)))
            await until(lambda number=number: edge.front.pool.waiting == number + 1)
        await asyncio.gather(first, *tasks)
        assert order == list(range(10))


# Clients that go away


async def test_a_client_that_goes_leaves_the_queue(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1) as edge:
        running = asyncio.ensure_future(edge.call("slow?sleep=6000", SLOW))
        await until(lambda: any(link.jobs for link in edge.front.pool.links))
        async with raw(edge) as leaving:
            await leaving.send(post("/functions/echo", b"x"))
            await until(lambda: edge.front.pool.waiting == 1)
        await until(lambda: edge.front.pool.waiting == 0)
        assert not running.done()
        assert (await running)[0] == 200
        assert edge.front.pool.tallies["echo"].outcomes == {"client_gone": 1}
        assert edge.front.server.shared.memory.held == 0


async def test_an_abandoned_call_is_ended_only_where_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stay(_self: Compiler, release: LocalRelease) -> list[LocalFunction]:
        return release.functions

    # Loading better code is something that waits, too.
    monkeypatch.setattr(Compiler, "improve", stay)
    async with serving(tmp_path, workers=1) as edge:
        (pid,) = edge.workers()
        async with raw(edge) as leaving:
            await leaving.send(post("/functions/loop"))
            await until(lambda: any(link.jobs for link in edge.front.pool.links))
        await asyncio.sleep(0.3)
        assert edge.workers() == {pid}
        # Someone else needs the worker now.
        async with asyncio.timeout(30):
            assert (await edge.call("echo", b"mine"))[2] == b"mine"
        assert edge.workers() != {pid}
        assert edge.front.pool.tallies["loop"].outcomes == {"client_gone": 1}


# The end


async def test_a_node_that_stops_answers_what_runs(tmp_path: Path) -> None:
    async with serving(tmp_path, workers=1, stop_limit=60.0) as edge:
        running = [asyncio.ensure_future(edge.call("slow?sleep=1500", SLOW)) for _ in range(3)]
        await until(lambda: edge.front.pool.waiting == 2)
        edge.front.stop()
        assert [answer[0] for answer in await asyncio.gather(*running)] == [200] * 3
