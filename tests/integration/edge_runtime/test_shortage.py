"""A system that has no process, descriptor or thread for the node any more: it serves on, and recovers by itself."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from control.protocol.service_manager import ServiceManager
from edge_runtime import front, threads
from edge_runtime.ipc.zygote_client import NotBorn, ZygoteClient
from edge_runtime.release.manager import ReleaseManager
from edge_runtime.settings import EdgeSettingsError
from edge_runtime.web.listener import Listener
from edge_runtime.web.server import KEPT, KEPT_PER_WORKER
from tests.guests.build import guest
from tests.support.deadlines import deadline, scaled
from tests.support.edge import Node, node, until
from tests.support.edge_process import FrontProcess, front_process


class Told(ServiceManager):
    """A service manager, and what it was told."""

    words: list[str]

    def _tell(self, words: str) -> None:
        self.words = [*getattr(self, "words", ()), words]


@pytest.fixture
def no_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists, no process can be made."""
    file = tmp_path / "no-forks"
    monkeypatch.setenv("SKERRY_NO_FORKS", str(file))
    monkeypatch.setattr(ZygoteClient, "PROGRAM", "tests.support.failing_forks")
    return file


async def test_a_new_zygote_that_is_short_of_memory_does_not_end_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short = tmp_path / "short"
    monkeypatch.setenv("SKERRY_UNFIT", str(short))
    monkeypatch.setattr(ZygoteClient, "PROGRAM", "tests.support.unfit_zygotes")
    async with node(tmp_path / "state", queue_wait=60.0) as edge:
        await edge.release({"echo": guest("echo")})
        short.touch()
        os.kill(edge.front.processes.pid, signal.SIGKILL)
        await until(lambda: "a new zygote can't run guests now: libgcc_s.so.1: failed to map" in caplog.text)
        waiting = asyncio.ensure_future(edge.call("echo", b"waited"))
        await until(lambda: edge.front.pool.waiting == 1)
        short.unlink()
        assert (await waiting)[2] == b"waited"


async def kill_all(edge: Node) -> None:
    """Kill all workers, and wait until they are missed."""
    killed = edge.workers() | edge.spares()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not killed & {link.child.pid for link in edge.front.pool.links})


async def test_a_failed_fork_costs_no_more_than_its_worker(
    tmp_path: Path, no_forks: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, boot = Told(watchdog=0.06), ReleaseManager.boot

    async def booted(self: ReleaseManager) -> None:
        await boot(self)
        assert "READY=1" not in manager.words, "it doesn't serve before"

    monkeypatch.setattr(ReleaseManager, "boot", booted)
    monkeypatch.setattr(front, "ServiceManager", lambda: manager)
    async with node(tmp_path / "state", queue_wait=60.0) as edge:
        await edge.release({"echo": guest("echo")})
        assert "READY=1" in manager.words
        no_forks.write_text("descriptors")
        with pytest.raises(NotBorn, match="Too many references"):
            await edge.front.processes.birth("compiler", patience=0.0)
        no_forks.unlink()
        no_forks.touch()
        zygote = edge.front.processes.pid
        one = min(edge.workers())
        os.kill(one, signal.SIGKILL)
        await until(lambda: bool(edge.front.supervisor.trouble))
        assert (await edge.call("echo", b"one is left"))[2] == b"one is left"
        assert edge.front.status()["workers"]["error"] == edge.front.supervisor.trouble
        assert "Resource temporarily unavailable" in edge.front.supervisor.trouble
        # With none left calls wait, and are answered when there is one again.
        await kill_all(edge)
        waiting = asyncio.ensure_future(edge.call("echo", b"waited"))
        await until(lambda: edge.front.pool.waiting == 1)
        await until(lambda: edge.front.supervisor._misses > 5)
        # Nor is systemd told that the node works, which starts it again if that lasts.
        manager.words = []
        await asyncio.sleep(0.1)
        assert manager.words == []
        with pytest.raises(NotBorn, match="Resource temporarily unavailable"):
            await edge.front.processes.birth("applier", patience=0.2)
        no_forks.unlink()
        assert (await waiting)[2] == b"waited"
        await until(lambda: len(edge.workers()) == 2)
        await until(lambda: manager.words[-1:] == ["WATCHDOG=1"])
        assert (edge.front.processes.pid, edge.front.processes.zygotes) == (zygote, 1)
        assert edge.front.status()["workers"]["error"] is None
        # An applier too.
        await edge.release({"echo": guest("echo"), "other": guest("echo")})
    told = [record.getMessage() for record in caplog.records if "no worker can be started" in record.getMessage()]
    assert len(told) == 1


async def test_a_zygote_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(tmp_path / "state", queue_wait=60.0) as edge:
        await edge.release({"echo": guest("echo")})
        # What is counted below has the descriptors of all processes, and of the client's connection.
        await until(lambda: len(edge.workers()) == 2 and len(edge.spares()) == 1)
        assert (await edge.call("echo", b"once"))[2] == b"once"
        right, attempts = ZygoteClient._exec, 0

        def fail(self: ZygoteClient, control: int, output: int) -> Any:
            nonlocal attempts
            attempts += 1
            if attempts <= 3:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return right(self, control, output)

        monkeypatch.setattr(ZygoteClient, "_exec", fail)
        files = len(os.listdir("/proc/self/fd"))
        os.kill(edge.front.processes.pid, signal.SIGKILL)
        await until(lambda: attempts == 4)
        await until(lambda: len(edge.workers()) == 2 and len(edge.spares()) == 1)
        assert (await edge.call("echo", b"again"))[2] == b"again"
        # The other descriptors of this process may come and go.
        await until(lambda: len(os.listdir("/proc/self/fd")) <= files + 2)


async def test_a_child_that_comes_without_its_descriptor_is_not_born(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the front has no descriptor left for it: the kernel then leaves it out."""
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo")})
        right, left_out = ZygoteClient._born, 0

        def lose(self: ZygoteClient, number: int, pid: int, descriptors: list[int]) -> None:
            nonlocal left_out
            if left_out < 2:
                left_out += 1
                for descriptor in descriptors:
                    os.close(descriptor)
                descriptors = []
            right(self, number, pid, descriptors)

        monkeypatch.setattr(ZygoteClient, "_born", lose)
        await kill_all(edge)
        await until(lambda: len(edge.workers()) == 2 and len(edge.spares()) == 1)
        assert left_out == 2
        assert (await edge.call("echo", b"again"))[2] == b"again"


async def hold(front: FrontProcess, clients: list[socket.socket], count: int, request: bytes = b"") -> None:
    """So many more connections, each with a part of a request."""
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        clients.append(client)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", front.port))
        if request:
            await asyncio.get_running_loop().sock_sendall(client, request)


async def test_connections_never_take_the_descriptors_that_the_front_needs(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo")})
    limit = 150
    async with front_process(tmp_path / "state", limits={"RLIMIT_NOFILE": limit}) as front:
        most = limit - KEPT - 2 * KEPT_PER_WORKER
        status = await front.status()
        assert status["connections"]["limit"] == most
        clients: list[socket.socket] = []
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [client.close() for client in clients])
            # Many more than it may have, all in the middle of a request; those beyond wait.
            await hold(front, clients, 2 * most, b"POST /functions/echo HTTP/1.1\r\nhost: localhost\r\n")
            await until(lambda: front.logged(b"connections wait to be accepted"))
            os.kill(status["workers"]["pids"][0], signal.SIGKILL)
            # The connection that this client has kept goes on.
            assert await front.healthy()
            assert await front.echo(b"hello") == b"hello"

            async def recovered() -> bool:
                workers = (await front.status())["workers"]
                return workers["fit"] == 2 and len(workers["spares"]) == 1 and workers["deaths"] == 1

            async with deadline(60):
                while not await recovered():
                    await asyncio.sleep(0.05)
        # With those gone, a new connection is taken.
        clients.clear()
        assert await _ask(front.port) == b"HTTP/1.1 200 OK"
        try:
            # Idle ones are ended where others need their place.
            await hold(front, clients, 2 * most)
            async with deadline(60):
                assert await _ask(front.port) == b"HTTP/1.1 200 OK"
        finally:
            for client in clients:
                client.close()
    assert front.returned == 0


async def _ask(port: int) -> bytes:
    """The first line of what a new client is told of the node's health; a connection that is ended is made again."""
    async with deadline(60):
        while True:
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(b"GET /_skerry/healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                    line = await reader.readline()
                    if line:
                        return line.strip()
                finally:
                    writer.transport.abort()


async def test_too_few_files_end_the_start_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (80, 80))
    with pytest.raises(ExceptionGroup) as found:
        async with node(tmp_path / "state"):
            pass
    error: BaseException = found.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, EdgeSettingsError)
    assert "this process may have 80 open files, and a node with 2 workers needs 88: raise the limit" in str(error)


class Refusing:
    """A listening socket of which the system refuses connections."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.errors: list[int] = []
        self.attempts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def accept(self) -> Any:
        self.attempts += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self.real.accept()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED])
async def test_a_connection_that_the_system_refuses_is_not_the_end(number: int) -> None:
    made: list[asyncio.Protocol] = []

    def protocol() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]

    with socket.socket() as real:
        real.bind(("127.0.0.1", 0))
        refusing = Refusing(real)
        refusing.errors = [number] * 3
        listener = Listener(refusing, protocol, lambda: 5, 5)  # type: ignore[arg-type]
        listener.open()
        _, writer = await asyncio.open_connection(*real.getsockname())
        await until(lambda: len(made) == 1)
        assert refusing.attempts >= 4
        listener.close()
        writer.transport.abort()


async def test_the_front_needs_no_thread_that_it_has_not_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(tmp_path / "state") as edge:

        def refuse(self: threading.Thread) -> NoReturn:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            await edge.release({"echo": guest("echo")})
            assert (await edge.call("echo", b"hello"))[2] == b"hello"
            for _ in range(20):
                await asyncio.gather(*[asyncio.to_thread(os.getpid) for _ in range(20)])


def test_a_start_without_threads_fails_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    right, started = threading.Thread.start, []

    def refuse(self: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        right(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threads.executor(4)
    for thread in started:
        thread.join(scaled(60))
        assert not thread.is_alive()
