"""The CLI against a server that fails as a real control can't be made to: 503s, cut connections, odd answers."""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from control.access import certificates
from control.cli import main as cli
from control.cli.support import client
from control.local import pki

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Faulty:
    """An HTTPS server that answers with what `answers` has next, the last one again and again."""

    def __init__(self, keys: pki.Pki) -> None:
        self.keys = keys
        self.answers: list[Answer] = []
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.path_qs, headers, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await answer(request)


@pytest.fixture
async def faulty(pki: pki.Pki, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Faulty]:
    """A faulty control that the environment points at; pauses between attempts are short."""
    server = Faulty(pki)
    application = web.Application(client_max_size=2**26)
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=_server_context(pki))
    await site.start()
    server.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.02)
    monkeypatch.setenv("SKERRY_URL", server.url)
    monkeypatch.setenv("SKERRY_TOKEN", "sko_secret")
    monkeypatch.setenv("SKERRY_CA", str(pki.ca))
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path / "home"))
    yield server
    await runner.cleanup()


def _server_context(keys: pki.Pki) -> object:
    return certificates.server_context(keys.certificate, keys.key)


def says(value: object, status: int = 200, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=orjson.dumps(value), status=status, headers=headers, content_type="application/json")

    return answer


async def cut(request: web.Request) -> web.StreamResponse:
    """The connection ends before any answer."""
    assert request.transport is not None
    request.transport.abort()
    await asyncio.sleep(0)
    return web.Response()


def problem(status: int, code: str, detail: str, field: str = "") -> Answer:
    return says({"status": status, "code": code, "title": "T", "detail": detail, "field": field}, status)


async def run(*arguments: str) -> int:
    """One command, in a thread of its own as it has a loop of its own."""
    return await asyncio.to_thread(cli.run, list(arguments))


GROUP = {"name": "blue", "generation": 0, "release": None, "nodes": 0}


async def test_a_write_is_tried_again_with_the_same_key(faulty: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    faulty.answers = [problem(503, "commit_unknown", "?"), cut, says(GROUP, 201)]
    assert await run("group", "create", "blue", "--json") == 0
    assert json.loads(capsys.readouterr().out) == GROUP
    assert [(method, path) for method, path, _, _ in faulty.seen] == [("POST", "/v1/groups")] * 3
    keys = {headers["idempotency-key"] for _, _, headers, _ in faulty.seen}
    assert len(keys) == 1
    assert {headers["authorization"] for _, _, headers, _ in faulty.seen} == {"Bearer sko_secret"}
    assert {body for *_, body in faulty.seen} == {b'{"name":"blue"}'}


async def test_two_writes_have_two_keys(faulty: Faulty) -> None:
    faulty.answers = [says(GROUP, 201)]
    await run("group", "create", "blue")
    await run("group", "create", "blue")
    assert len({headers["idempotency-key"] for _, _, headers, _ in faulty.seen}) == 2


async def test_an_unavailable_control_is_given_up(faulty: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    faulty.answers = [problem(503, "database_busy", "other writers were in the way")]
    assert await run("group", "create", "blue") == 4
    assert len(faulty.seen) == client.ATTEMPTS
    error = capsys.readouterr().err
    assert "other writers were in the way" in error
    assert "database_busy" in error


async def test_a_refusal_is_told_and_not_tried_again(faulty: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    faulty.answers = [problem(409, "name_taken", "there is a group 'blue' already", "name")]
    assert await run("group", "create", "blue") == 3
    assert len(faulty.seen) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is a group 'blue' already [name_taken, field name]" in captured.err


async def test_errors_are_json_for_scripts(faulty: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    faulty.answers = [problem(409, "name_taken", "there is a group 'blue' already", "name")]
    assert await run("group", "create", "blue", "--json") == 3
    error = json.loads(capsys.readouterr().err)["error"]
    assert error == {"message": "there is a group 'blue' already", "code": "name_taken", "field": "name", "exit": 3}


async def test_a_fault_of_control_is_a_failure(faulty: Faulty) -> None:
    faulty.answers = [problem(500, "internal", "a fault")]
    assert await run("group", "list") == 1


@pytest.mark.parametrize("value", [[], "text", None])
async def test_an_answer_that_is_no_object_is_a_failure(faulty: Faulty, value: object) -> None:
    faulty.answers = [says(value)]
    assert await run("group", "list") == 1


async def test_a_redirect_is_not_followed(faulty: Faulty) -> None:
    """A token goes to the control that it is for, and nowhere else."""
    faulty.answers = [says({}, 307, location=f"{faulty.url}/elsewhere")]
    assert await run("group", "list") == 1
    assert [path for _, path, _, _ in faulty.seen] == ["/v1/groups"]


def test_what_up_has_left_and_another_user_may_not_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("SKERRY_URL", "SKERRY_TOKEN", "SKERRY_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path))
    read = Path.read_bytes

    def closed(path: Path) -> bytes:
        if path == tmp_path / client.HOME_FILE:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", closed)
    assert cli.run(["status"]) == 2
    told = capsys.readouterr().err
    assert "set SKERRY_URL and SKERRY_TOKEN" in told
    assert "again" not in told


async def test_an_unreachable_control(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
        monkeypatch.setenv("SKERRY_URL", f"https://127.0.0.1:{port}")
        monkeypatch.setenv("SKERRY_TOKEN", "sko_secret")
        # The port is kept until then, so that nobody else listens there.
        assert await run("group", "list") == 4
        error = capsys.readouterr().err
        assert str(port) in error
        assert "sko_secret" not in error
        assert "it is https://" not in error
        monkeypatch.setenv("SKERRY_URL", f"http://127.0.0.1:{port}")
        assert await run("group", "list") == 4
        assert "Where control has a certificate, it is https://" in capsys.readouterr().err


async def test_a_control_that_the_ca_did_not_sign_gets_no_token(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKERRY_CA", str(pki.ensure(tmp_path / "other").ca))
    assert await run("group", "list") == 4
    assert faulty.seen == []
    assert "SKERRY_CA" in capsys.readouterr().err


async def test_plain_http_is_refused_away_from_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_URL", "http://control.example.org")
    monkeypatch.setenv("SKERRY_TOKEN", "sko_secret")
    assert await run("group", "list") == 2


async def test_the_files_of_up_are_found(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SKERRY_URL", "SKERRY_TOKEN", "SKERRY_CA"):
        monkeypatch.delenv(name)
    assert await run("group", "list") == 2
    assert "skerry up" in capsys.readouterr().err
    folder = tmp_path / "home"
    folder.mkdir()
    kept = {"url": faulty.url, "token": "sko_local", "ca": str(faulty.keys.ca), "edge": "http://127.0.0.1:1"}
    (folder / client.HOME_FILE).write_text(json.dumps(kept))
    faulty.answers = [says({"items": [], "next": None})]
    assert await run("group", "list") == 0
    assert faulty.seen[0][2]["authorization"] == "Bearer sko_local"


async def test_the_local_token_never_goes_to_another_control(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SKERRY_TOKEN")
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / client.HOME_FILE).write_text(json.dumps({"url": "https://127.0.0.1:1", "token": "sko_local"}))
    assert await run("group", "list") == 2
    assert faulty.seen == []


async def test_lists_are_read_to_their_end(faulty: Faulty, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [{"items": [{**GROUP, "name": f"g{n}"}], "next": f"c{n}" if n < 2 else None} for n in range(3)]
    faulty.answers = [says(page) for page in pages]
    assert await run("group", "list", "--json") == 0
    assert [group["name"] for group in json.loads(capsys.readouterr().out)] == ["g0", "g1", "g2"]
    assert [path for _, path, _, _ in faulty.seen] == ["/v1/groups", "/v1/groups?cursor=c0", "/v1/groups?cursor=c1"]


async def test_an_upload_is_sent_whole_again(faulty: Faulty, tmp_path: Path) -> None:
    file = tmp_path / "big.wasm"
    content = bytes(range(256)) * 12_000
    file.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    version = {"name": "big", "version": 1, "sha256": sha256, "size": len(content), "manifest": {}}
    faulty.answers = [
        says({}, 404),
        cut,
        problem(503, "store_unavailable", "?"),
        says({"size": 1}, 201),
        says(version, 201),
    ]
    assert await run("function", "push", "big", str(file), "--no-release") == 0
    uploads = [(headers, body) for method, _, headers, body in faulty.seen if method == "PUT"]
    assert [body == content for _, body in uploads] == [True, True, True]
    assert {headers["content-length"] for headers, _ in uploads} == {str(len(content))}
    assert len({headers["idempotency-key"] for headers, _ in uploads}) == 1


async def test_an_upload_is_waited_for_while_it_is_checked(
    faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gave up would send it again, and wait for its turn once more."""
    monkeypatch.setattr(client, "READ_SECONDS", 0.2)
    file = tmp_path / "small.wasm"
    file.write_bytes(b"\0asm")

    async def late(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return await says({"size": 4}, 201)(request)

    version = {"name": "small", "version": 1, "sha256": "0" * 64, "size": 4, "manifest": {}}
    faulty.answers = [says({}, 404), late, says(version, 201)]
    assert await run("function", "push", "small", str(file), "--no-release") == 0
    assert [method for method, *_ in faulty.seen].count("PUT") == 1


async def test_bytes_that_control_has_are_not_sent(faulty: Faulty, tmp_path: Path) -> None:
    file = tmp_path / "small.wasm"
    file.write_bytes(b"\0asm")
    version = {"name": "small", "version": 2, "sha256": "0" * 64, "size": 4, "manifest": {}}
    faulty.answers = [says({}), says(version, 201)]
    assert await run("function", "push", "small", str(file), "--no-release", "--sql", "read", "--config", "A=b=c") == 0
    assert [method for method, *_ in faulty.seen] == ["HEAD", "POST"]
    assert json.loads(faulty.seen[1][3])["manifest"] == {"sql": "read", "config": {"A": "b=c"}}
