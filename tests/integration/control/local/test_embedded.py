"""The local services, by themselves: they keep what was written, and nothing of them outlives who started them."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest

from control.local import embedded, postgres, seaweedfs
from control.local.process import choose_port, read_settings
from control.local.seaweedfs import s3_client
from tests.support.deadlines import deadline, scaled
from tests.support.forked_programs import may_be_forked
from tests.support.programs import runs
from tests.support.services import ServerUrls, home_folder, remove_home


@pytest.fixture
def new_home(tmp_path_factory):
    """One that isn't there yet, as at the first start of all."""
    path = tmp_path_factory.mktemp("embedded") / "home"
    yield path
    remove_home(path)


@pytest.fixture
def home():
    """One with PostgreSQL's files in it, which cost most of a first start."""
    with home_folder() as path:
        yield path


@pytest.fixture(scope="module")
def running():
    """A home and its services, which a test leaves running."""
    with home_folder() as path, asyncio.Runner() as runner:
        context = embedded.services(path)
        services = runner.run(context.__aenter__())
        try:
            yield path, services
        finally:
            runner.run(context.__aexit__(None, None, None))


async def keep(metadata_url: str, text: str) -> None:
    """Write a row that stays."""
    connection = await asyncpg.connect(metadata_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (text TEXT)")
    await connection.execute("INSERT INTO kept VALUES ($1)", text)
    await connection.close()


async def kept(metadata_url: str) -> list[str]:
    connection = await asyncpg.connect(metadata_url)
    rows = [row["text"] for row in await connection.fetch("SELECT text FROM kept ORDER BY text")]
    await connection.close()
    return rows


async def write(services: embedded.LocalServices | ServerUrls, text: str) -> None:
    await keep(services.metadata_url, text)
    async with s3_client(services.artifacts_url) as client:
        await client.put_object(Bucket="artifacts", Key=text, Body=text.encode())


async def read(services: embedded.LocalServices) -> tuple[list[str], list[str]]:
    rows = await kept(services.metadata_url)
    async with s3_client(services.artifacts_url) as client:
        listed = await client.list_objects_v2(Bucket="artifacts")
        # A start that gave up waiting for an answer may find its object written later.
        objects = [o["Key"] for o in listed.get("Contents", []) if o["Key"] != "skerry-start"]
        for key in objects:
            answer = await client.get_object(Bucket="artifacts", Key=key)
            assert await answer["Body"].read() == key.encode()
    return rows, objects


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


async def until_gone(processes: list[psutil.Process], seconds: float = 60) -> None:
    async with deadline(seconds):
        while any(map(runs, processes)):
            await asyncio.sleep(0.05)


async def test_data_and_addresses_are_there_after_a_stop_and_nothing_runs_on(new_home):
    # Others may have left some, by a number that is another port's here.
    earlier = set(Path("/tmp").glob("seaweedfs-*"))
    async with embedded.services(new_home) as services:
        urls = services.metadata_url, services.artifacts_url
        await write(services, "first")
        processes = family(services.metadata.pid) + family(services.artifacts.pid)
    await until_gone(processes)
    port = int(urls[1].rpartition(":")[2].partition("/")[0]) + 10000
    assert not set(Path("/tmp").glob(f"seaweedfs-*-grpc-{port}*")) - earlier
    async with embedded.services(new_home) as services:
        assert (services.metadata_url, services.artifacts_url) == urls
        assert await read(services) == (["first"], ["first"])


@pytest.mark.never_retry
async def test_data_survives_a_kill_of_both_servers(home):
    async with embedded.services(home) as services:
        await write(services, "before")
        await services.metadata.kill()
        await services.artifacts.kill()
        with pytest.raises(OSError, match="Connect"):
            await asyncpg.connect(services.metadata_url)
        await asyncio.gather(services.metadata.start(), services.artifacts.start())
        await write(services, "later")
        assert await read(services) == (["before", "later"], ["before", "later"])


async def test_a_server_that_ends_by_itself_is_noticed(running):
    _, services = running
    watch = asyncio.create_task(services.watch())
    os.kill(services.artifacts.pid, signal.SIGKILL)
    try:
        with pytest.raises(embedded.ServiceError, match=r"SeaweedFS was ended by signal 9; its log .*artifacts\.log"):
            await asyncio.wait_for(watch, scaled(60))
    finally:
        await services.artifacts.start()


async def test_transactions_are_serializable_and_further_databases_are_empty(running):
    _, services = running
    await write(services, "elsewhere")
    url = await embedded.create_database(services.metadata_url, "another")
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SHOW default_transaction_isolation") == "serializable"
    assert await connection.fetchval("SHOW fsync") == "on"
    assert await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 'kept'") == 0
    await connection.close()
    with pytest.raises(ValueError, match="named by lower case"):
        await embedded.create_database(services.metadata_url, 'x"; DROP DATABASE skerry')


async def test_servers_listen_on_loopback_alone_and_want_their_secrets(running):
    home, services = running
    listening = await all_listening(services)
    assert {address.ip for address in listening} == {"127.0.0.1"}

    url = services.metadata_url
    password = url.partition("@")[0].rpartition(":")[2]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url.replace(password, "wrong"))
    for path in home.rglob("settings.json"):
        assert path.stat().st_mode & 0o777 == 0o600

    port = int(services.artifacts_url.rpartition(":")[2].partition("/")[0])
    await write(services, "closed")
    before = await read(services)
    # By S3 without a signature, and by the filer behind S3.
    for other in (f"{port}/artifacts/closed", f"{port + 1}/buckets/artifacts/closed"):
        assert await http_status(other) in (401, 403)
        assert await http_status(other, "PUT") in (401, 403)
    assert await read(services) == before


async def all_listening(services: embedded.LocalServices) -> set[Any]:
    """The addresses, once there are all: the store takes objects before its last parts are up."""
    processes = [psutil.Process(services.metadata.pid), psutil.Process(services.artifacts.pid)]
    async with deadline(60):
        while True:
            found = [c for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            if len(found) >= 11:
                return {connection.laddr for connection in found}
            await asyncio.sleep(0.05)


async def test_the_stores_inner_ports_want_a_certificate(running):
    home, services = running
    await all_listening(services)
    port = int(services.artifacts_url.rpartition(":")[2].partition("/")[0]) + 10000
    keys = home / "artifacts" / "conf" / "pki"
    for inner in range(port, port + 5):
        assert not (await grpc_greeting(inner, None)).startswith(GRPC_GREETING), "speaks without TLS"
        anyone = ssl.create_default_context(cafile=keys / "ca.pem")
        anyone.set_alpn_protocols(["h2"])
        with pytest.raises(ssl.SSLError, match="certificate required"):
            await grpc_greeting(inner, anyone)
        anyone.load_cert_chain(keys / "server.pem", keys / "server.key")
        assert (await grpc_greeting(inner, anyone)).startswith(GRPC_GREETING)


# A SETTINGS frame of HTTP/2: length (whatever it is, under 256), then its type.
GRPC_GREETING = b"\x00\x00"


async def grpc_greeting(port: int, context: ssl.SSLContext | None) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        return await asyncio.wait_for(reader.read(9), scaled(60))
    finally:
        # Not a TLS connection's polite end, for which the test's loop would be gone.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def http_status(port_and_path: str, method: str = "GET") -> int:
    port, _, path = port_and_path.partition("/")
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    writer.write(f"{method} /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def test_another_process_with_the_same_home_is_refused_at_once(running):
    home, _ = running
    with pytest.raises(embedded.ServiceError, match="another process runs"):
        async with asyncio.timeout(embedded.ORPHANS_LIMIT / 2), embedded.services(home):
            pass


async def test_a_port_that_another_took_is_replaced(home):
    async with embedded.services(home) as services:
        first = services.metadata_url, services.artifacts_url
        await write(services, "moved")
    taken = []
    for url in first:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Others may have taken it already.
        with contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])))
            listener.listen()
        taken.append(listener)
    try:
        async with embedded.services(home) as services:
            assert services.metadata_url != first[0]
            assert services.artifacts_url != first[1]
            assert await read(services) == (["moved"], ["moved"])
    finally:
        for listener in taken:
            listener.close()


async def test_a_port_that_another_start_chose_in_the_same_moment_is_replaced(running, home, monkeypatch):
    """Both have seen it free, and the other's server was quicker; a store has several in a row."""
    _, others = running
    taken = {}
    for module, url, beside in ((postgres, others.metadata_url, [0]), (seaweedfs, others.artifacts_url, [0, 1, -1])):
        taken[module] = [urlsplit(url).port + each for each in beside]
        first = iter(taken[module])
        monkeypatch.setattr(module, "choose_port", lambda *of, first=first: next(first, 0) or choose_port(*of))
    async with embedded.services(home) as services:
        await write(services, "own")
        assert await read(services) == (["own"], ["own"])
        assert urlsplit(services.metadata_url).port not in taken[postgres]
        assert urlsplit(services.artifacts_url).port not in taken[seaweedfs]


@pytest.mark.parametrize("name", ["s3-{0}", "filer-{1}", "admin-grpc-{2}"])
def test_ports_whose_socket_another_user_left_are_not_chosen(name, monkeypatch):
    """The server can't replace it, and ends."""

    def socket_of(port: int) -> Path:
        return Path(f"/tmp/seaweedfs-{name.format(port, port + 1, port + 4 + 10000)}.sock")

    # A killed store of our own leaves such sockets, too.
    port = choose_port(None, seaweedfs.PORTS, lambda port: seaweedfs._all_free(port) and not socket_of(port).exists())
    left = socket_of(port)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    try:
        assert seaweedfs._all_free(port)
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        assert not seaweedfs._all_free(port)
    finally:
        left.unlink()


@contextlib.asynccontextmanager
async def database_alone(home: Path) -> AsyncIterator[postgres.PostgreSQL]:
    """The metadata database without the store."""
    with open(home / "services.lock", "w") as lock:
        server = postgres.PostgreSQL(home / "metadata", home / "logs" / "metadata.log", lock.fileno(), {})
        try:
            await server.start()
            yield server
        finally:
            await server.stop()


async def test_a_first_start_that_was_cut_short_is_done_again(home):
    data = (home / "metadata" / "data").resolve()
    # As a kill in the middle of initdb leaves it.
    data.rename(data.with_name("data.new"))
    password = read_settings(home / "metadata" / "settings.json")["password"]
    async with database_alone(home) as server:
        assert urlsplit(server.url).password == password
        await keep(server.url, "new")
        assert await kept(server.url) == ["new"]


PARENT = may_be_forked("""
import asyncio, sys
from pathlib import Path
from typing import Any
from control.local import embedded

async def main():
    async with embedded.services(Path(sys.argv[1])) as services:
        print(services.metadata.pid, services.artifacts.pid, services.metadata_url, services.artifacts_url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
""")


def start_parent(home: Path) -> tuple[subprocess.Popen[str], list[psutil.Process], ServerUrls]:
    """A process with services of its own: what it started, and where that is."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(home)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    told = parent.stdout.readline().split()
    assert len(told) == 4, f"the parent ended with {parent.wait()}"
    return parent, [process for pid in told[:2] for process in family(int(pid))], ServerUrls(*told[2:])


@pytest.mark.never_retry
async def test_nothing_is_left_after_kill_9_of_the_parent_and_a_new_start_finds_the_data(home):
    parent, processes, urls = start_parent(home)
    assert len(processes) > 3
    await write(urls, "kept")
    # A client that keeps its connection open and says nothing must not hold the end up.
    idle = socket.create_connection(("127.0.0.1", read_settings(home / "artifacts" / "settings.json")["port"]))
    parent.kill()
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()
    # At once, while the old servers are still on their way out.
    async with embedded.services(home) as services:
        await until_gone(processes, 0)
        assert await read(services) == (["kept"], ["kept"])
    idle.close()


async def test_a_store_that_hangs_is_not_left_after_kill_9_of_the_parent(home):
    """Seen: one that hung in its end in order, and took no second signal for it."""
    parent, processes, _ = start_parent(home)
    [store] = [process for process in processes if process.name() == "weed"]
    store.suspend()
    try:
        parent.kill()
        parent.wait()
        await until_gone(processes)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            store.kill()
        assert parent.stdout is not None
        parent.stdout.close()


async def test_a_stale_lock_file_with_the_pid_of_another_process_is_no_hindrance(home):
    async with database_alone(home) as server:
        await keep(server.url, "kept")
        await server.kill()
        pid_file = (home / "metadata" / "data").resolve() / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        bystander = subprocess.Popen(["sleep", "600"], user=pid_file.stat().st_uid)
        pid_file.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        try:
            await server.start()
            assert await kept(server.url) == ["kept"]
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


async def test_ctrl_c_ends_everything_in_order(home):
    parent, processes, _ = start_parent(home)
    parent.send_signal(signal.SIGINT)
    await asyncio.to_thread(parent.wait, scaled(60))
    assert parent.stdout is not None
    parent.stdout.close()
    await until_gone(processes, 0)
    assert "database system is shut down" in (home / "logs" / "metadata.log").read_text()
