"""A node's local HTTP over TLS: what callers show by certificate, how certificates are exchanged while calls run, and
that what a client costs stays bounded."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from control.local.pki import Pki
from edge_runtime.cli import status as status_command
from edge_runtime.files import FileUnfit
from edge_runtime.web import connection, tls_files
from edge_runtime.web.server import SWEEP
from edge_runtime.web.tls_files import TlsFiles
from tests.guests.build import guest
from tests.integration.edge_runtime.web.test_callers import entry, write
from tests.support.certificates import Authority
from tests.support.connections import on_uvloop, post, site
from tests.support.deadlines import deadline, scaled
from tests.support.edge import node, until
from tests.support.edge_process import front_process
from tests.support.moved_clock import MovedClock

FUNCTIONS: dict[str, Any] = {"env": guest("env"), "echo": guest("echo")}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def settings(folder: Path, authority: Authority, **more: Any) -> dict[str, Any]:
    certificate, key = authority.issue("node").put(folder, "node")
    return {"tls_cert": certificate, "tls_key": key, **more}


@contextlib.asynccontextmanager
async def client(port: int, context: ssl.SSLContext) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(f"https://localhost:{port}", connector=connector) as session:
        yield session


async def text(session: aiohttp.ClientSession, path: str = "/functions/env", **headers: str) -> tuple[int, str]:
    """Status, and the text; of a refusal its code."""
    async with session.get(path, headers=headers) as answer:
        refused = answer.content_type == "application/problem+json"
        return answer.status, (await answer.json(content_type=None))["code"] if refused else await answer.text()


def variables(environment: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in environment.splitlines() if "=" in line)


async def test_a_caller_is_known_by_its_certificate(tmp_path: Path, authority: Authority) -> None:
    till, stranger = authority.issue("till"), authority.issue("stranger")
    shown = {"till": till.put(tmp_path, "till"), "stranger": stranger.put(tmp_path, "stranger")}
    other = Authority()
    foreign = other.issue("till").put(tmp_path, "foreign")
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    file = tmp_path / "callers.toml"
    kiosk = entry("kiosk", "kiosk-token", 'functions = ["echo"]')
    write(file, f'{kiosk}[[caller]]\nname = "till"\ncertificate_sha256 = "{till.digest}"\nfunctions = ["env"]')
    given = settings(tmp_path, authority, callers=file, tls_client_ca=tmp_path / "ca.pem")
    async with node(tmp_path / "state", **given) as edge:
        await edge.release(FUNCTIONS)
        port = edge.front.port
        async with client(port, authority.context(shown["till"])) as session:
            status, told = await text(session, **{"Remote-User": "root", "X-Forwarded-Proto": "http"})
            assert status == 200
            found = variables(told)
            assert (found["REMOTE_USER"], found["AUTH_TYPE"]) == ("till", "Certificate")
            assert (found["HTTPS"], found["X_FULL_URL"]) == ("on", f"https://localhost:{port}/functions/env")
            # With another's token it is itself all the same; the header is the function's.
            status, told = await text(session, authorization="Bearer kiosk-token")
            assert variables(told)["REMOTE_USER"] == "till"
            assert variables(told)["HTTP_AUTHORIZATION"] == "Bearer kiosk-token"
            assert await text(session, "/functions/echo", authorization="Bearer kiosk-token") == (
                403,
                "caller_forbidden",
            )
            # A browser shows its certificate whoever's page asks.
            assert (await text(session, origin="https://evil.example"))[0] == 403
            assert (await text(session, origin=f"https://localhost:{port}"))[0] == 200
            assert (await text(session, origin=f"http://localhost:{port}"))[0] == 403
            assert await text(session, host="evil.example") == (403, "host_refused")
        async with client(port, authority.context(shown["stranger"])) as session:
            assert await text(session) == (401, "caller_unknown")
            assert (await text(session, "/functions/echo", authorization="Bearer kiosk-token"))[0] == 200
        async with client(port, authority.context()) as session:
            assert await text(session) == (401, "caller_unknown")
            assert (await text(session, "/functions/echo", authorization="Bearer kiosk-token"))[0] == 200
        async with client(port, authority.context(foreign)) as session:
            with pytest.raises(aiohttp.ClientError):
                await text(session)
        # Its entry goes while its connection stays.
        async with client(port, authority.context(shown["till"])) as session:
            assert (await text(session))[0] == 200
            write(file, kiosk)
            await until(lambda: edge.front.callers is not None and len(list(edge.front.callers)) == 1)
            assert await text(session) == (401, "caller_unknown")


async def serial(port: int, authority: Authority) -> bytes:
    """The certificate that a new connection gets."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=authority.context())
    del reader
    shown = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()
    return bytes(shown)


def readable(folder: Path, authority: Authority) -> None:
    """Put a pair into its place whose key others can read, at no moment a good one: the node may look at any."""
    certificate, key = authority.issue("node").put(folder / "new", "node")
    key.chmod(0o604)
    key.replace(folder / "node.key")
    certificate.replace(folder / "node.pem")


async def test_a_certificate_is_exchanged_while_calls_run(tmp_path: Path, authority: Authority) -> None:
    given = settings(tmp_path, authority)
    async with node(tmp_path / "state", **given) as edge, client(edge.front.port, authority.context()) as session:
        await edge.release(FUNCTIONS)
        files = edge.front.tls_files
        assert files is not None
        port, first = edge.front.port, await serial(edge.front.port, authority)
        seen: list[int] = []
        stop = False

        async def calls() -> None:
            while not stop:
                seen.append((await text(session))[0])

        running = [asyncio.create_task(calls()) for _ in range(3)]
        try:
            await until(lambda: len(seen) > 3)
            connections = set(edge.front.server.shared.live)
            for bad, said in (
                (
                    lambda: (tmp_path / "node.pem").write_text("no certificate"),
                    "one of them isn't in PEM, or isn't whole",
                ),
                (lambda: (tmp_path / "node.key").unlink(), "can't be read"),
                (lambda: authority.issue("ended", timedelta(days=-1)).put(tmp_path, "node"), "ended at"),
                (lambda: readable(tmp_path, authority), "chmod 600"),
            ):
                bad()
                await until(lambda said=said: said in files.error)
                assert await serial(port, authority) == first
                assert files.status()["error"] == files.error
            authority.issue("node").put(tmp_path, "node")
            await until(lambda: not files.error)
            second = await serial(port, authority)
            assert second != first
            # Whoever had a connection has it still.
            count = len(seen)
            await until(lambda: len(seen) > count + 5)
            assert connections & set(edge.front.server.shared.live)
        finally:
            stop = True
            await asyncio.gather(*running)
        assert set(seen) == {200}


async def test_a_signal_has_the_files_read_at_once(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: str(path) for name, path in settings(tmp_path, authority).items()}
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS)
    async with front_process(tmp_path / "state", **given) as process:
        first = await serial(process.port, authority)
        os.kill(process.pid, signal.SIGHUP)
        async with deadline(60):
            while not process.logged(b"new connections get the certificate"):
                await asyncio.sleep(0.01)
        assert await serial(process.port, authority) == first
        async with client(process.port, authority.context()) as session:
            assert (await text(session))[0] == 200


async def test_a_certificate_that_has_ended_is_said_to_have(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = authority.issue("node", timedelta(days=-2)).put(tmp_path, "node")
    async with node(tmp_path / "state", tls_cert=certificate, tls_key=key) as edge:
        assert any("the certificate in" in line and "ended at" in line for line in caplog.messages)
        told = await asyncio.to_thread(status_command.read_status, f"127.0.0.1:{edge.front.port}", "", tls=True)
        assert told["tls"]["expired"]
        assert "clients refuse it" in status_command.render(told)
        with pytest.raises(ssl.SSLError):
            await serial(edge.front.port, authority)


def test_files_that_cant_be_read_just_then_are_read_later(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = authority.issue("node").put(tmp_path, "node")
    made = TlsFiles(certificate, key, None)
    made.start()
    before = made.context
    authority.issue("node").put(tmp_path, "node")
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise OSError(24, "Too many open files")

        broken.setattr(ssl.SSLContext, "load_cert_chain", fail)
        made.look()
        made.look()
    assert "Too many open files" in made.error
    assert caplog.text.count("Too many open files") == 1
    assert made.context is before
    made.look()
    assert not made.error
    assert made.context is not before


def test_files_that_cant_be_used_end_the_start(tmp_path: Path, authority: Authority) -> None:
    certificate, key = authority.issue("node").put(tmp_path, "node")
    other, _ = authority.issue("other").put(tmp_path, "other")
    for given, said in (
        ((tmp_path / "none", key, None), "can't be used"),
        ((other, key, None), "aren't a pair"),
        ((certificate, tmp_path / "none", None), "can't be read"),
        ((certificate, key, key), "no certificates"),
    ):
        with pytest.raises(FileUnfit, match=said):
            TlsFiles(*given).start()
    files = TlsFiles(certificate, key, None)
    files.start()
    context = ssl.create_default_context()
    assert context.check_hostname
    assert files.status()["expires_at"] is not None
    assert files.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_end_of_a_certificate_is_read_of_its_bytes(tmp_path: Path, authority: Authority) -> None:
    from cryptography import x509

    for life in (timedelta(days=-3), timedelta(days=20), timedelta(days=365 * 40)):
        issued = authority.issue("n", life)
        certificate, _ = issued.put(tmp_path, "n")
        wanted = x509.load_pem_x509_certificate(issued.certificate).not_valid_after_utc.timestamp()
        assert tls_files._end_of(certificate) == wanted
    certificate.write_text("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    assert tls_files._end_of(certificate) is None


# What a client may cost


@on_uvloop
async def test_bodies_come_and_go_whole(tmp_path: Path, pki: Pki) -> None:
    async with site(tmp_path, pki) as edge, edge.client() as one, edge.client() as two:
        body = os.urandom(3_000_000)
        one.send(post(body=body))
        two.send(post(body=b"two") * 5 + post("/large"))
        for _ in range(5):
            assert (await two.answer())[2] == b"two"
        assert (await two.answer())[2] == b"large" * 800_000
        assert (await one.answer())[2] == body
        one.send(post(body=b"again", more="connection: close\r\n"))
        assert (await one.answer())[2] == b"again"
        assert await one.end() == b""


@on_uvloop
async def test_what_clients_dont_read_is_bounded_over_tls_too(tmp_path: Path, pki: Pki) -> None:
    async with site(tmp_path, pki, answer_memory=4_000_000) as edge, contextlib.AsyncExitStack() as stack:
        shared = edge.server.shared
        for number in range(5):
            client = await stack.enter_async_context(edge.client(small=True))
            client.send(post("/large") * 3)
            await until(lambda number=number: len(edge.app.runs) == number + 1)
            await until(lambda: bool(shared.unread.of_connection))
        # One answer of each is made, and no other before it is read; what is encrypted counts.
        await until(lambda: shared.unread.given_up >= 3)
        assert 0 < shared.unread.bytes <= 4_000_000
        assert len(edge.app.runs) == 5
        for _ in range(3):
            assert (await client.answer())[2] == b"large" * 800_000
        assert len(edge.app.runs) == 7


@on_uvloop
async def test_handshakes_that_dont_come_to_an_end_are_ended(tmp_path: Path, pki: Pki, clock: MovedClock) -> None:
    async with site(tmp_path, pki) as edge:
        clock.stand()
        socks = [socket.create_connection(("127.0.0.1", edge.port)) for _ in range(3)]
        socks[1].send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await until(lambda: len(edge.server.shared.live) == 3)
        silent = list(edge.server.shared.live)
        # They cost others nothing meanwhile.
        async with edge.client() as client:
            client.send(post(body=b"x"))
            assert (await client.answer())[2] == b"x"
        await clock.move(connection.HEAD_WAIT)
        assert edge.server.shared.live >= set(silent)
        await clock.move(2 * SWEEP)
        await until(lambda: not edge.server.shared.live)
        for sock in socks:
            sock.setblocking(True)
            sock.settimeout(scaled(60))
            with contextlib.suppress(ConnectionError):
                assert sock.recv(10) == b""
            sock.close()


@on_uvloop
async def test_what_is_no_tls_is_counted_and_ended(tmp_path: Path, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tmp_path, pki) as edge:
        for data in (b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", b"\0" * 100, os.urandom(300)):
            reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
            writer.write(data)
            async with deadline(60):
                with contextlib.suppress(ConnectionError):
                    await reader.read(-1)
            writer.close()
        await until(lambda: not edge.server.shared.live)
        assert len([line for line in caplog.messages if "a TLS handshake with 127.0.0.1 failed" in line]) == 1


@on_uvloop
async def test_a_stop_ends_what_is_idle_and_waits_for_what_runs(tmp_path: Path, pki: Pki) -> None:
    async with site(tmp_path, pki, stop_limit=60.0) as edge, edge.client() as idle, edge.client() as busy:
        edge.app.at_once = False
        busy.send(post(body=b"kept"))
        await until(lambda: len(edge.app.runs) == 1)
        edge.server.stop()
        assert await idle.end() == b""
        edge.app.answer(0)
        assert (await busy.answer())[2] == b"kept"


async def test_an_end_is_told_from_thirty_days_before(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.issue("node", timedelta(days=40)).put(tmp_path, "node")
    made, now = TlsFiles(certificate, key, None), time.time()
    said: list[int] = []
    for days in (0, 11, 11.5, 12.5, 41, 41.5, 42.5):
        monkeypatch.setattr(time, "time", lambda days=days: now + days * 86_400)
        caplog.clear()
        made.start() if not days else made.look()
        said.append(sum("put another one in its place" in line.lower() for line in caplog.messages))
        status = {"tls": made.status(), "database": {"writes": "open", "checkpoint_error": None}}
        told = status_command.render(status)
        assert ("ends at" in told, "ended at" in told) == (11 <= days < 40, days > 40)
    assert said == [0, 1, 0, 1, 1, 0, 1]


async def test_a_signal_ends_no_node_that_has_nothing_to_read_again(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS)
    async with front_process(tmp_path / "state") as process:
        os.kill(process.pid, signal.SIGHUP)
        async with deadline(60):
            while not process.logged(b"files that can change are read again"):
                await asyncio.sleep(0.01)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{process.port}") as session:
            assert (await text(session))[0] == 200


async def test_a_signal_that_comes_while_a_node_ends_changes_nothing(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release(FUNCTIONS)

    async def signals(process: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            while True:
                signal.pidfd_send_signal(process, signal.SIGHUP)
                await asyncio.sleep(0.0005)

    async with front_process(tmp_path / "state") as process:
        descriptor = os.pidfd_open(process.pid)
        sending = asyncio.create_task(signals(descriptor))
    await sending
    os.close(descriptor)
    assert process.returned == 0
