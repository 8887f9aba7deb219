"""The server: TLS, how it starts and refuses to, how it ends, and a database that goes away and comes back."""

import asyncio
import contextlib
import os
import re
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from cryptography import x509

from control.local.pki import Pki
from control.local.process import port_is_free
from control.problems import ProblemError
from control.storage import database
from control.sync import fleet_cache
from control.web.server import ControlServer, StartError
from tests.support import seeds
from tests.support.certificates import Authority
from tests.support.clock import SetClock
from tests.support.cutting import cutting
from tests.support.deadlines import deadline, scaled
from tests.support.ports import free_port
from tests.support.programs import control_program, until
from tests.support.replica import Replica, Site, TestNode, running
from tests.support.told_manager import told_manager
from tests.support.wire_tap import tap


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TLS 1.1 is
async def test_tls_1_2_or_later(control_site: Site) -> None:
    async with control_site.running() as replica:
        parts = urlsplit(replica.url)
        for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=str(replica.ca))
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
            try:
                _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
            except (ssl.SSLError, ConnectionError):
                assert version is ssl.TLSVersion.TLSv1_1
            else:
                assert version is not ssl.TLSVersion.TLSv1_1
                writer.transport.abort()


async def test_plain_http_is_not_spoken(control_site: Site) -> None:
    async with control_site.running() as replica:
        parts = urlsplit(replica.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        async with deadline(60):
            assert b"HTTP" not in await reader.read()
        writer.close()


async def test_the_date_of_answers_is_set_at_each_tick(control_site: Site) -> None:
    """Ten ticks of a busy loop take seconds, by which nodes would take their clocks for wrong."""
    async with control_site.running() as replica:
        state = replica.server.server_state
        for counter in range(1, 11):
            state.default_headers = []
            assert not await replica.server.on_tick(counter)
            assert [name for name, _ in state.default_headers] == [b"date"]


async def test_what_keeps_it_from_starting_is_said(control_site: Site, pki: Pki, tmp_path: Path) -> None:
    async def refused(**settings: object) -> str:
        with pytest.raises(StartError) as error:
            async with running(replace(control_site.settings, **settings)):  # type: ignore[arg-type]
                pass
        return str(error.value)

    assert "SKERRY_TLS_CERT" in await refused(tls_cert=None, tls_key=None, bind="0.0.0.0")
    assert str(pki.ca) in await refused(tls_cert=pki.ca)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    assert str(nonsense) in await refused(tls_cert=nonsense)
    port = free_port()
    async with control_site.running(port=port):
        assert f"port {port}" in await refused(port=port)
    assert port_is_free(port)


async def test_requests_under_way_are_finished_and_endless_ones_cut(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        async with tap(replica.url, replica.ca) as idle, tap(replica.url, replica.ca) as slow:
            await idle.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await idle.answer())[0] == 200
            head = f"POST /v1/poll HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {node.credential}\r\n"
            await slow.send(head.encode() + b"content-length: 100\r\n\r\n{")
            async with asyncio.timeout(15):
                while not replica.server.server_state.tasks:
                    await asyncio.sleep(0.01)
            since = time.monotonic()
            replica.server.should_exit = True
            # Before the body's own time is over.
            assert await idle.closed(15)
            assert await slow.closed(15)
            assert time.monotonic() - since < 15


@asynccontextmanager
async def process(site: Site, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`skerry serve`, and where it says that it serves."""
    serving = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", "serve"),
        env=site.environment() | environment,
        stderr=asyncio.subprocess.PIPE,
    )
    assert serving.stderr is not None
    try:
        said = b""
        async with deadline(60):
            while not (found := re.search(rb"serves on (https://\S+)", said)):
                line = await serving.stderr.readline()
                assert line, said.decode()
                said += line
        reading = asyncio.create_task(serving.stderr.read())
        yield serving, found[1].decode()
        await reading
    finally:
        if serving.returncode is None:
            serving.kill()
            await serving.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_ends_in_order_on_a_signal(control_site: Site, number: signal.Signals) -> None:
    async with control_site.running() as local:
        nodes = await seeds.nodes(local, 20)
    async with process(control_site) as (serving, url):
        context = ssl.create_default_context(cafile=str(control_site.ca))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0)) as session:
            remote = Replica(local.server, url, control_site.ca, session, control_site.admin)
            polls = []
            for node in nodes:
                node.replica = remote
                polls.append(asyncio.create_task(node.ask(25)))
            await held_by(remote, len(nodes))
            since = time.monotonic()
            serving.send_signal(number)
            answers = await asyncio.gather(*polls)
            took = time.monotonic() - since
            async with deadline(60):
                assert await serving.wait() == 0
            print(f"answered after {took * 1000:.0f} ms, ended after {(time.monotonic() - since) * 1000:.0f} ms")
        assert {(answer.status, answer.headers["connection"]) for answer in answers} == {(503, "close")}
        assert took < 15


async def test_a_start_that_waits_ends_at_once(control_site: Site) -> None:
    """Here for a database that takes connections and doesn't answer."""
    async with cutting(control_site.settings.metadata_url) as cutter:
        cutter.freezing = b"user"
        serving = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control.cli", "serve"),
            env=control_site.environment() | {"SKERRY_METADATA_URL": cutter.url},
            stderr=asyncio.subprocess.PIPE,
        )
        async with deadline(60):
            while not cutter.frozen:
                await asyncio.sleep(0.01)
        since = time.monotonic()
        serving.send_signal(signal.SIGTERM)
        async with deadline(60):
            _, said = await serving.communicate()
        # asyncpg waits for ten seconds.
        assert time.monotonic() - since < 8
    assert serving.returncode == 0
    assert b"control has ended before it was up" in said
    assert b"Traceback" not in said


async def test_a_database_that_is_late_is_named_and_a_replica_of_tests_starts_again(control_site: Site) -> None:
    async with cutting(control_site.settings.metadata_url) as cutter:
        cutter.frozen = True
        late = asyncio.create_task(database.connect(cutter.url))
        # When both have given up.
        asyncio.get_running_loop().call_later(database.CONNECT_TIMEOUT + 1, setattr, cutter, "frozen", False)
        async with running(replace(control_site.settings, metadata_url=cutter.url)) as server:
            assert server.started
        with pytest.raises(ProblemError, match="can't be reached: no answer in time"):
            await late


async def test_it_ends_while_the_database_stands(control_site: Site) -> None:
    # Were a database that stands waited for, it would be for a quarter of an hour.
    async with cutting(control_site.settings.metadata_url) as cutter:
        server = ControlServer(replace(control_site.settings, metadata_url=cutter.url, database_timeout=1000.0))
        serving = asyncio.create_task(server._serve())
        try:
            async with deadline(30):
                while not server.started:
                    await asyncio.sleep(0.01)
            context = ssl.create_default_context(cafile=str(control_site.ca))
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
                replica = Replica(server, server.url, control_site.ca, session, control_site.admin)
                node = await replica.join("one")
                assert (await node.poll()).status == 204
                # In the middle of a write's transaction.
                cutter.freezing = b"INSERT INTO groups"
                asking = asyncio.create_task(replica.call("POST", "/v1/groups", {"name": "g"}))
                asking.add_done_callback(lambda task: task.exception())
                async with deadline(30):
                    while not cutter.frozen:
                        await asyncio.sleep(0.01)
                # A heartbeat that is to be written at the end.
                server.app.services.heartbeats.seen(node.id, server.app.services.clock.now())
                server.should_exit = True
                await asyncio.wait({serving}, timeout=scaled(60))
                assert serving.done()
        finally:
            server.should_exit = True
            cutter.freezing, cutter.frozen = b"", False
            cutter.cut_all()
            await serving


async def held_by(replica: Replica, count: int) -> None:
    """Wait until a replica says that it holds so many polls."""
    async with deadline(60):
        while f"skerry_held_polls {count}.0" not in (await replica.call("GET", "/metrics")).body.decode():
            await asyncio.sleep(0.05)


async def test_a_database_that_goes_away_and_comes_back(control_site: Site) -> None:
    clock = SetClock(timers="stand")
    async with (
        cutting(control_site.settings.metadata_url) as cutter,
        control_site.running(metadata_url=cutter.url, clock=clock) as replica,
    ):
        node: TestNode = await replica.join("one")
        assert (await node.poll()).status == 204
        cutter.refusing = True
        cutter.cut_all()
        clock.advance(fleet_cache.STALE_AFTER - 0.1)
        assert (await node.ask()).status == 204
        clock.advance(0.1)
        answer = await node.ask()
        assert (answer.status, answer.json()["code"]) == (503, "database_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        cutter.refusing = False
        await clock.passes_until(lambda: replica.services.fleet.fresh, fleet_cache.PERIOD)
        assert (await node.ask()).status == 204
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.sync()


async def test_a_replica_that_stood_still_reads_before_it_answers(control_site: Site) -> None:
    """As after a pause of the machine: operators are neither refused nor believed by what was so before."""
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as replica, control_site.running() as other:
        tokens = [
            (await replica.call("POST", "/v1/operators", {"name": name, "role": "read"})).json()["token"]
            for name in ("stays", "goes")
        ]
        fleet = replica.services.fleet
        await fleet.refresh()
        async with fleet._reading:
            assert (await other.call("DELETE", "/v1/operators/goes")).status == 204
            clock.advance(fleet_cache.STALE_AFTER)
            asking = [asyncio.create_task(replica.call("GET", "/v1/nodes", token=token)) for token in tokens]
            assert not (await asyncio.wait(asking, timeout=0.2))[0]
        answers = [await answer for answer in asking]
    assert [answer.status for answer in answers] == [200, 401]


async def serial(url: str, ca: Path) -> int:
    """The serial number of the certificate that control shows now."""
    parts = urlsplit(url)
    context = ssl.create_default_context(cafile=str(ca))
    _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


async def test_a_signal_has_the_certificate_read_again_and_ends_nothing(control_site: Site, tmp_path: Path) -> None:
    authority = Authority()
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.certificate)
    certificate, key = authority.issue("control", timedelta(days=300)).put(tmp_path, "control")
    site = replace(
        control_site, settings=replace(control_site.settings, tls_cert=certificate, tls_key=key, ca_cert=ca), ca=ca
    )
    async with told_manager(tmp_path) as manager, process(site, **manager.environment) as (serving, url):
        # systemd, which may send the signal from then on.
        await manager.is_told_of_the_start()
        first = await serial(url, ca)
        authority.issue("control", timedelta(days=300)).put(tmp_path, "control")
        serving.send_signal(signal.SIGHUP)
        async with deadline(60):
            while await serial(url, ca) == first:
                await asyncio.sleep(0.05)
        # One that can't be used changes nothing, and an operator is told of it.
        certificate.write_text("nothing")
        context = ssl.create_default_context(cafile=str(ca))
        connector = aiohttp.TCPConnector(ssl=context)
        headers = {"authorization": f"Bearer {site.admin}"}
        async with aiohttp.ClientSession(url, connector=connector, headers=headers) as session:
            for path, said in (("/readyz", "notes"), ("/v1/certificates", "notes")):
                async with deadline(60):
                    while True:
                        async with session.get(path) as answer:
                            told = await answer.json()
                            # A machine that is busy may for a moment be told that the database didn't answer in time.
                            assert answer.status == 200 or (path == "/readyz" and answer.status == 503)
                        if any("what was read before stays in use" in line for line in told.get(said, [])):
                            break
                        await asyncio.sleep(0.05)
            assert [one["what"] for one in told["certificates"]] == ["control"]
            async with session.get("/metrics") as answer:
                assert 'skerry_files_unfit{files="certificates"} 1.0' in await answer.text()
        assert serving.returncode is None
        await manager.is_told_of_work()
        serving.send_signal(signal.SIGTERM)
        async with deadline(60):
            assert await serving.wait() == 0


async def test_it_refuses_to_start_with_a_certificate_that_has_ended(control_site: Site, tmp_path: Path) -> None:
    certificate, key = Authority().issue("control", timedelta(days=-1)).put(tmp_path, "control")
    environment = control_site.environment() | {"SKERRY_TLS_CERT": str(certificate), "SKERRY_TLS_KEY": str(key)}
    serving = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control.cli", "serve", env=environment, stderr=asyncio.subprocess.PIPE
    )
    async with deadline(60):
        _, said = await serving.communicate()
    assert serving.returncode == 1
    assert b"nodes and operators would refuse" in said.replace(b"\n", b" ")


async def test_a_signal_has_files_read_again_that_have_not_changed(control_site: Site, tmp_path: Path) -> None:
    async with control_program(control_site, tmp_path / "control") as (program, replica):
        os.kill(program.pid, signal.SIGHUP)

        async def read() -> bool:
            return "files that can change are read again: " in program.text()

        await until(read, "the log says so")
        assert (await replica.call("GET", "/healthz", token="")).status == 200


@pytest.mark.usefixtures("programs_by_exec")
async def test_no_signal_to_read_files_again_ends_it_at_its_start_or_end(control_site: Site) -> None:
    """From when it has begun to load the server to the end of its process."""
    serving = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control.cli", "serve", env=control_site.environment(), stderr=asyncio.subprocess.PIPE
    )
    said = bytearray()

    async def read() -> None:
        assert serving.stderr is not None
        while piece := await serving.stderr.read(65_536):
            said.extend(piece)

    async def signals() -> None:
        while serving.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                serving.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.0005)

    loaded = Path(f"/proc/{serving.pid}/maps")
    reading = asyncio.create_task(read())
    try:
        async with deadline(60):
            while "uvloop" not in loaded.read_text():
                await asyncio.sleep(0.0005)
            sending = asyncio.create_task(signals())
            while b"files that can change are read again" not in said and serving.returncode is None:
                await asyncio.sleep(0.01)
            assert serving.returncode is None, (serving.returncode, said.decode())
            serving.send_signal(signal.SIGTERM)
            assert await serving.wait() == 0, said.decode()
            await sending
            await reading
    finally:
        if serving.returncode is None:
            serving.kill()
            await serving.wait()
    assert b"Traceback" not in said
