"""Grants through a real edge: HTTP, secrets, SQL, routes; what is denied is told to the guest and counted."""

import asyncio
import base64
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from edge_runtime.cli import status as status_command
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.supervisor import LoadFailed
from edge_runtime.errors import SyncFailed
from edge_runtime.release import manager
from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import Node, node, until
from tests.support.lent_node import NodeLender
from tests.support.moved_clock import MovedClock

LARGE = 1_200_000
VALUE = "a-value-that-nobody-may-see"


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[tuple[str, dict[str, int]]]:
    """Its URL, and what it has seen by path."""
    seen: dict[str, int] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        seen[request.path] = seen.get(request.path, 0) + 1
        if request.path == "/slow":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen["gone"] = seen.get("gone", 0) + 1
                raise
        if request.path == "/large":
            return web.Response(body=b"\xff" * LARGE)
        return web.Response(text=f"{request.method} {request.path} {(await request.text())}")

    app = web.Application(client_max_size=2 * LARGE)
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site() -> AsyncIterator[tuple[str, dict[str, int]]]:
    """A server for the functions of the lent node."""
    async with server() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(
    tmp_path_factory: pytest.TempPathFactory, site: tuple[str, dict[str, int]]
) -> AsyncIterator[NodeLender]:
    """Has a node on which each test has functions of its own."""
    url, wasm = site[0], guest("fetch")
    both = {"hosts": [url], "methods": ["GET", "POST"]}
    large = {**both, "request_bytes": LARGE, "response_bytes": LARGE}
    functions = {
        "f": (wasm, {"http": {**both, "response_bytes": 10_000, "time_limit_ms": 5000}, "sql": "write"}),
        "none": wasm,
        "many": (wasm, {"http": {"hosts": [url]}}),
        "echo": guest("echo"),
        "large": (wasm, {"http": large, "memory_pages": 4000, "time_limit_ms": 60_000}),
        "rows": (wasm, {"sql": "read", "sql_rows": 40}),
        "bytes": (wasm, {"sql": "read", "sql_bytes": 2000}),
    }
    things = ["CREATE TABLE things (n INTEGER);"]
    made = NodeLender(tmp_path_factory.mktemp("node"), functions, things, written={"things"})
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def lent(lender: NodeLender) -> AsyncIterator[Node]:
    async with lender.lent() as edge:
        yield edge


in_the_modules_loop = pytest.mark.asyncio(loop_scope="module")
"""For a test that is lent the module's node."""


async def ask(edge: Node, path: str, *requests: dict[str, Any] | str) -> list[Any]:
    """The answers that the guest got, in order."""
    lines = [r if isinstance(r, str) else orjson.dumps(r).decode() for r in requests]
    status, _, body = await edge.call(path, "\n".join(lines).encode())
    assert status == 200, body
    return [orjson.loads(line) for line in body.splitlines()]


async def state(edge: Node) -> Any:
    async with edge.http.get("/_skerry/status") as answer:
        return await answer.json()


async def denied(edge: Node, name: str) -> dict[str, int]:
    found: dict[str, int] = next(f["denied"] for f in (await state(edge))["functions"] if f["name"] == name)
    return found


@in_the_modules_loop
async def test_http_is_made_by_the_front_within_its_grant(lent: Node, site: tuple[str, dict[str, int]]) -> None:
    url, seen = site
    seen.clear()
    got, posted, put, other, plain = await ask(
        lent,
        "f",
        {"url": f"{url}/a"},
        {"url": f"{url}/b", "method": "POST", "body": "text"},
        {"url": f"{url}/c", "method": "PUT"},
        {"url": "https://other.example/"},
        {"url": "nonsense"},
    )
    assert (got["status"], got["body"]) == (200, "GET /a ")
    assert posted["body"] == "POST /b text"
    assert [answer["error"]["code"] for answer in (put, other, plain)] == [
        "not_granted",
        "not_granted",
        "http_request_invalid",
    ]
    assert seen == {"/a": 1, "/b": 1}
    # SQL and HTTP in one call, its transaction kept.
    mixed = await ask(
        lent,
        "f",
        'SQL {"sql":"INSERT INTO things VALUES (1)"}',
        {"url": f"{url}/d"},
        'SQL {"sql":"DROP TABLE things"}',
    )
    assert mixed[1]["body"] == "GET /d "
    [[counted]] = (await ask(lent, "f", 'SQL {"sql":"SELECT count(*) FROM things"}'))[0]["rows"]
    assert counted == 1
    assert [a["error"]["code"] for a in await ask(lent, "none", {"url": f"{url}/e"}, 'SQL {"sql":"SELECT 1"}')] == [
        "not_granted",
        "not_granted",
    ]
    assert await denied(lent, "f") == {"http_method": 1, "http_host": 1, "sql_statement": 1}
    assert await denied(lent, "none") == {"http_host": 1, "sql": 1}
    async with lent.http.get("/_skerry/metrics") as answer:
        assert 'skerry_edge_denied_total{function="none",kind="sql"} 1.0' in await answer.text()


@in_the_modules_loop
async def test_many_calls_fetch_at_once_and_each_gets_its_own(lent: Node, site: tuple[str, dict[str, int]]) -> None:
    url, _ = site

    async def one(number: int) -> None:
        [first, second] = await ask(lent, "many", {"url": f"{url}/{number}"}, {"url": f"{url}/{number}/2"})
        assert (first["body"], second["body"]) == (f"GET /{number} ", f"GET /{number}/2 ")
        status, _, body = await lent.call("echo", b"%d" % number)
        assert (status, body) == (200, b"%d" % number)

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(one(number))


@in_the_modules_loop
async def test_large_bodies_pass_both_ways(lent: Node, site: tuple[str, dict[str, int]]) -> None:
    url, _ = site
    text = "ü" * (LARGE // 2)
    large, posted, more = await ask(
        lent,
        "large",
        {"url": f"{url}/large"},
        {"url": f"{url}/x", "method": "POST", "body": text},
        {"url": f"{url}/x", "method": "POST", "body": text + "x"},
    )
    assert base64.b64decode(large["body"]["$blob"]) == b"\xff" * LARGE
    # The answer repeats the body, and its first line is more than the grant allows.
    assert [posted["error"]["code"], more["error"]["code"]] == ["http_too_large"] * 2
    assert "request_bytes" in more["error"]["message"]
    assert "response_bytes" in posted["error"]["message"]


async def test_a_call_that_ends_gives_its_request_up(tmp_path: Path) -> None:
    async with server() as (url, seen), node(tmp_path / "state") as edge:
        grant = {"hosts": [url], "time_limit_ms": 60_000}
        wasm = guest("fetch")
        # Long enough for the request to have been sent.
        await edge.release({"f": (wasm, {"http": grant, "time_limit_ms": 3000}), "quick": (wasm, {"http": grant})})
        # The time of a request is the call's. On a busy machine it may be over before the request was sent.
        while not seen.get("/slow"):
            assert await edge.problem("f", orjson.dumps({"url": f"{url}/slow"})) == (504, "time_limit")
        await until(lambda: seen.get("gone", 0) > 0)
        await until(lambda: len(edge.workers()) == 2)
        [told] = await ask(edge, "quick", {"url": f"{url}/quick"})
        assert told["body"] == "GET /quick "


@in_the_modules_loop
async def test_the_manifests_limits_of_sql_and_log_hold(lent: Node) -> None:
    rows = 'SQL {"sql":"WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n LIMIT %d) SELECT i FROM n"}'
    fits, many = await ask(lent, "rows", rows % 40, rows % 500)
    assert len(fits["rows"]) == 40
    assert many["error"]["code"] == "sql_too_many_rows"
    fits, large = await ask(lent, "bytes", rows % 100, rows % 500)
    assert len(fits["rows"]) == 100
    assert large["error"]["code"] == "sql_answer_too_large"


def write(path: Path, text: str) -> None:
    """Replace the file in one step, as an operator's tool would."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(path)


async def test_secrets_come_from_the_nodes_file_alone(
    tmp_path: Path, clock: MovedClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path, wasm = tmp_path / "secrets.toml", guest("fetch")
    manifest = {"secrets": ["KEY"], "config": {"OPEN": "yes"}}

    async def env(edge: Node, name: str, variable: str) -> str:
        return (await edge.call(f"{name}?env={variable}"))[2].decode()

    async with node(tmp_path / "state", secrets=path) as edge:
        await edge.release({"f": wasm})
        with pytest.raises(SyncFailed) as failed:
            await edge.release({"f": (wasm, manifest)})
        assert failed.value.code == "secret_missing"
        assert "KEY" in failed.value.message
        assert str(path) in failed.value.message
        assert (await env(edge, "f", "KEY")) == "(none)"

        write(path, f'[f]\nKEY = "{VALUE}"\nMORE = "{VALUE}"\n[g]\nKEY = "{VALUE}2"\n')
        await edge.release({"f": (wasm, manifest), "g": (wasm, {"secrets": ["KEY"]}), "h": wasm})
        assert await env(edge, "f", "KEY") == VALUE
        assert await env(edge, "f", "MORE") == "(none)"
        assert await env(edge, "f", "OPEN") == "yes"
        assert await env(edge, "g", "KEY") == f"{VALUE}2"
        assert await env(edge, "h", "KEY") == "(none)"

        # Another value gets to the workers without a release.
        write(path, f'[f]\nKEY = "{VALUE}3"\n[g]\nKEY = "{VALUE}2"\n')
        async with deadline(60):
            while await env(edge, "f", "KEY") != f"{VALUE}3":
                await clock.move(manager.SECRETS_PAUSE)
        # One that can't be used changes nothing, and is told.
        path.chmod(0o644)
        await clock.until(lambda: edge.front.secrets.error)
        shown = await state(edge)
        assert "chmod 600" in shown["secrets"]["error"]
        assert await env(edge, "f", "KEY") == f"{VALUE}3"
        assert VALUE not in orjson.dumps(shown).decode()

    # A node that starts without them serves what it can.
    path.unlink()
    async with node(tmp_path / "state", secrets=path) as edge:
        assert await edge.problem("f") == (503, "secret_missing")
        shown = await state(edge)
        assert [f["error"] and f["error"]["code"] for f in shown["functions"]] == ["secret_missing"] * 2 + [None]
        assert "can't be called: The function f needs the secret KEY" in status_command.render(shown)
        assert await edge.problem("g") == (503, "secret_missing")
        assert (await edge.call("h?env=KEY"))[0] == 200
        write(path, f'[f]\nKEY = "{VALUE}"\n')
        async with deadline(60):
            while (await edge.call("f?env=KEY"))[2] != VALUE.encode():
                await clock.move(manager.SECRETS_PAUSE)
        assert await edge.problem("g") == (503, "secret_missing")

    assert VALUE not in caplog.text
    path.unlink()
    holding = [str(file) for file in files(tmp_path) if VALUE.encode() in file.read_bytes()]
    assert holding == []


def files(folder: Path) -> list[Path]:
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]


async def test_new_values_of_secrets_that_cannot_be_loaded_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: MovedClock
) -> None:
    path, wasm = tmp_path / "secrets.toml", guest("fetch")
    function = {"f": (wasm, {"secrets": ["KEY"]})}
    write(path, '[f]\nKEY = "1"\n')

    async with node(tmp_path / "state", secrets=path) as edge:
        await edge.release(function)
        tries: list[str] = []

        async def failing(_: Any, secrets: dict[str, dict[str, str]], *__: Any, **___: Any) -> int:
            tries.append(secrets["f"]["KEY"])
            raise LoadFailed("no_process", "There is no process for it.")

        async def has(value: str) -> None:
            async with deadline(60):
                while (await edge.call("f?env=KEY"))[2].decode() != value:
                    await clock.move(manager.SECRETS_PAUSE)

        with monkeypatch.context() as broken:
            broken.setattr(edge.front.supervisor, "load", failing)
            write(path, '[f]\nKEY = "2"\n')
            await clock.until(lambda: tries)
            # At once, where the file changes; again and again only after a while.
            write(path, '[f]\nKEY = "3"\n')
            await clock.until(lambda: len(tries) == 2)
            await clock.move(manager.SECRETS_AGAIN - manager.SECRETS_PAUSE)
            assert tries == ["2", "3"]
            await clock.move(2 * manager.SECRETS_PAUSE)
            assert tries == ["2", "3", "3"]
            await clock.move(manager.SECRETS_AGAIN + 2 * manager.SECRETS_PAUSE)
            assert tries == ["2", "3", "3", "3"]
            assert (await edge.call("f?env=KEY"))[2] == b"1"
        await has("3")
        # A release that fails may have looked at the file first.
        write(path, '[f]\nKEY = "4"\n')
        assert edge.front.secrets.look()
        await has("4")


async def test_a_probe_has_the_secrets_and_no_http(tmp_path: Path) -> None:
    path = tmp_path / "secrets.toml"
    write(path, f'[f]\nKEY = "{VALUE}"\n')
    async with server() as (url, seen), node(tmp_path / "state", secrets=path) as edge:
        probe = {"path": "/?env=KEY", "status": 200}
        await edge.release({"f": (guest("fetch"), {"secrets": ["KEY"], "probe": probe})})
        probe = {"body": orjson.dumps({"url": url}).decode(), "method": "POST"}
        await edge.release({"g": (guest("fetch"), {"http": {"hosts": [url]}, "probe": probe})})
        assert seen == {}


async def test_a_plugin_has_its_grants_too(tmp_path: Path) -> None:
    path = tmp_path / "secrets.toml"
    write(path, f'[plug]\nkey = "{VALUE}"\n')
    async with server() as (url, seen), node(tmp_path / "state", secrets=path) as edge:
        manifest = {
            "abi": "extism",
            "entry": "fetch",
            "secrets": ["key"],
            "http": {"hosts": [url], "methods": ["POST"]},
            "route": {"path": "/fetch/{what}"},
        }
        await edge.release({"plug": (guest("plugin"), manifest)})
        assert (await edge.call("plug/config", b"key"))[2] == VALUE.encode()
        request = orjson.dumps({"url": f"{url}/a", "method": "POST"})
        async with edge.http.post("/fetch/config", data=request + b"\nbody") as answer:
            assert (answer.status, (await answer.text()).rpartition("} ")[2]) == (200, "POST /a body")
        assert await edge.problem("plug/fetch", request.replace(b"POST", b"PUT")) == (502, "guest_http_failed")
        told = orjson.loads((await edge.call("plug/ask", b'{"url": "https://other.example/", "method": "POST"}'))[2])
        assert told["error"]["code"] == "not_granted"
        assert orjson.loads((await edge.call("plug/sql", b'{"sql": "SELECT 1"}'))[2])["error"]["code"] == "not_granted"
        assert await denied(edge, "plug") == {"http_method": 1, "http_host": 1, "sql": 1}
        assert seen == {"/a": 1}


async def test_routes_lead_to_their_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = guest("env")
    async with node(tmp_path / "state") as edge:
        async with edge.http.get("/orders/7") as answer:
            assert answer.status == 404
        await edge.release(
            {
                "order": (env, {"sql": "write", "route": {"path": "/orders/{id}", "methods": ["GET", "PUT"]}}),
                "new": (env, {"route": {"path": "/orders/new"}}),
                "rest": (env, {"route": {"path": "/files/{path...}", "methods": ["POST"]}}),
            }
        )

        async def got(path: str, method: str = "GET") -> dict[str, str]:
            async with edge.http.request(method, path) as answer:
                assert answer.status == 200, await answer.text()
                lines = (await answer.text()).splitlines()
                return dict(line.split("=", 1) for line in lines if "=" in line)

        found = await got("/orders/7?x=1")
        assert found["SKERRY_FUNCTION"] == "order"
        assert (found["SCRIPT_NAME"], found["PATH_INFO"], found["QUERY_STRING"]) == ("/orders", "/7", "x=1")
        assert (found["X_MATCHED_ROUTE"], found["PATH_PARAM_ID"]) == ("/orders/{id}", "7")
        assert (await got("/orders/new"))["SKERRY_FUNCTION"] == "new"
        found = await got("/files/a/b%20c", "POST")
        assert (found["SKERRY_FUNCTION"], found["PATH_PARAM_PATH"]) == ("rest", "a/b c")
        async with edge.http.head("/orders/7") as answer:
            assert answer.status == 200
        async with edge.http.delete("/orders/7") as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, PUT")
            assert (await answer.json(content_type=None))["code"] == "method_unknown"
        async with edge.http.get("/orders") as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (404, "path_unknown")
        # By their names they are there too.
        status, _, body = await edge.call("order/7", method="DELETE")
        assert status == 200
        assert b"SCRIPT_NAME=/functions/order\n" in body
        assert b"PATH_PARAM_ID" not in body
        # The next release has other routes; a call that waited for it, as those do that may write, doesn't run by its
        # old one.
        edge.front.pool.hold_all()
        monkeypatch.setattr(Pool, "hold_writes", lambda self, *_: None)
        waiting = asyncio.ensure_future(edge.http.put("/orders/7"))
        await until(lambda: edge.front.pool.waiting == 1)
        await edge.release({"order": (env, {"route": {"path": "/o/{id}"}})})
        async with await waiting as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (503, "release_changing")
        async with edge.http.get("/orders/7") as answer:
            assert answer.status == 404
        assert (await got("/o/7", "DELETE"))["PATH_PARAM_ID"] == "7"
        # A route for all paths has all of them behind it, as no function's name is before it.
        await edge.release({"all": (env, {"route": {"path": "/{path...}"}})})
        found = await got("/orders/7")
        assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("", "/orders/7")
