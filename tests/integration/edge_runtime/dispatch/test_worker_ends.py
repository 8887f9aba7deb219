"""The front sees the end of a worker by its process, whatever its socket shows."""

import asyncio
import os
import select
import signal
import socket
from pathlib import Path

import pytest

from edge_runtime.dispatch import resource_watchdog
from edge_runtime.dispatch.outcomes import Answer
from edge_runtime.ipc import zygote_client
from tests.guests.build import guest
from tests.support.deadlines import scaled
from tests.support.edge import calm, node, submit, until


async def test_an_end_is_seen_whose_socket_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[socket.socket] = []
    pair = socket.socketpair

    def kept_open(*arguments: int) -> tuple[socket.socket, socket.socket]:
        ours, theirs = pair(*arguments)
        # As where somebody else had the worker's end: it isn't closed.
        kept.append(theirs.dup())
        return ours, theirs

    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        try:
            with monkeypatch.context() as patched:
                patched.setattr(zygote_client.socket, "socketpair", kept_open)
                for link in list(edge.front.pool.links):
                    os.kill(link.child.pid, signal.SIGKILL)
                    await until(lambda link=link: link.ended.done())
                await until(lambda: bool(edge.workers()) and bool(edge.spares()))
            assert len(kept) >= 2
            (worker,), spares = edge.workers(), edge.spares()
            before = edge.front.pool.deaths
            os.kill(edge.front.processes.pid, signal.SIGSTOP)
            try:
                os.kill(worker, signal.SIGKILL)
                assert (await asyncio.wait_for(edge.call("echo", b"well"), scaled(60)))[2] == b"well"
                assert edge.workers() == spares
                assert edge.front.pool.deaths == before + 1
            finally:
                os.kill(edge.front.processes.pid, signal.SIGCONT)
        finally:
            for end in kept:
                end.close()


async def test_what_a_worker_has_said_counts_where_only_other_threads_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call was answered, and may have changed rows: nobody may be told that it has failed."""
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        await calm(edge)
        # A worker's first call of a function has one more frame before its answer.
        assert (await edge.call("echo", b"first"))[2] == b"first"
        # From here to the look the front does nothing else: the answer is in its socket, and it hasn't read it.
        outcome = submit(edge, "echo")
        (link,) = [link for link in edge.front.pool.links if link.jobs]
        assert select.select([link.child.sock], [], [], scaled(30))[0]
        with monkeypatch.context() as patched:
            patched.setattr(resource_watchdog, "private", lambda pid: 0)
            resource_watchdog.look_at_memory(edge.front.pool, 0)
        assert link.killed
        assert isinstance(await outcome, Answer)
        assert (await edge.call("echo", b"well"))[2] == b"well"


async def test_a_worker_that_cannot_open_the_file_says_why_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk that takes no more writes; once it does, there are workers again."""
    async with node(tmp_path / "state", workers=1, queue_wait=60.0) as edge:
        await edge.release({"echo": guest("echo")})
        lock = edge.state.database / "writer.lock"
        lock.rename(lock.with_suffix(".kept"))
        lock.mkdir()
        for pid in edge.workers() | edge.spares():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: "it can't open the libsql file: [Errno 21] Is a directory" in caplog.text)
        assert "Traceback" not in caplog.text
        lock.rmdir()
        lock.with_suffix(".kept").rename(lock)
        assert (await edge.call("echo", b"again"))[2] == b"again"
