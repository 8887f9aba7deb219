"""The spare worker has loaded what the others were called for, before it takes the place of one of them."""

import asyncio
import os
import signal
from pathlib import Path

import orjson
import pytest

from edge_runtime.dispatch import supervisor
from edge_runtime.dispatch.supervisor import Supervisor
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import frames
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.deadlines import scaled
from tests.support.edge import Node, node, until
from tests.support.moved_clock import MovedClock
from tests.support.programs import Faults


def local(edge: Node, name: str) -> frames.LocalFunction:
    release = edge.front.pool.release
    assert release is not None
    return next(function for function in release.functions if function.name == name)


def has(pid: int, function: frames.LocalFunction) -> bool:
    """Whether a process has the function's code loaded."""
    try:
        return function.code[0] in Path(f"/proc/{pid}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def idle_spare(edge: Node) -> WorkerLink | None:
    return next((link for link in edge.front.pool.links if link.usable and link.spare and not link.jobs), None)


def spare_has(edge: Node, function: frames.LocalFunction) -> bool:
    link = idle_spare(edge)
    return link is not None and has(link.child.pid, function)


async def test_a_spare_worker_has_loaded_what_the_others_were_called_for(tmp_path: Path) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"called": guest("echo"), "uncalled": guest("slow"), "third": guest("sql")})
        called, uncalled = local(edge, "called"), local(edge, "uncalled")
        assert (await edge.call("called", b"well"))[2] == b"well"
        await until(lambda: spare_has(edge, called))
        for _ in range(2):
            # The second time a spare is born after the call.
            await until(lambda: len(edge.workers()) == 1 and spare_has(edge, called))
            (worker,), (spare,) = edge.workers(), edge.spares()
            assert not has(spare, uncalled)
            os.kill(edge.front.processes.pid, signal.SIGSTOP)
            try:
                os.kill(worker, signal.SIGKILL)
                assert (await asyncio.wait_for(edge.call("called", b"well"), scaled(60)))[2] == b"well"
                assert edge.workers() == {spare}
                assert not has(spare, uncalled)
            finally:
                os.kill(edge.front.processes.pid, signal.SIGCONT)


async def test_the_status_names_a_spare_worker_once_it_has_loaded(tmp_path: Path, faults: Faults) -> None:

    async def spares() -> list[int]:
        async with edge.http.get("/_skerry/status") as answer:
            found: list[int] = (await answer.json())["workers"]["spares"]
            return found

    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        await until(lambda: idle_spare(edge) is not None)
        assert len(await spares()) == 1
        faults.arm("edge.preload.before", "hold")
        assert (await edge.call("echo", b"well"))[2] == b"well"
        await faults.reached("edge.preload.before")
        assert await spares() == []
        faults.let_go("edge.preload.before")
        await until(lambda: idle_spare(edge) is not None)
        assert await spares() == sorted(edge.spares())


async def test_a_spare_worker_in_the_middle_of_a_load_takes_a_place_after_it(tmp_path: Path, faults: Faults) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo"), "two": guest("echo")})
        await until(lambda: idle_spare(edge) is not None)
        (worker,), (spare,) = edge.workers(), edge.spares()
        faults.arm("edge.preload.before", "hold")
        assert (await edge.call("echo", b"well"))[2] == b"well"
        assert (await edge.call("two", b"well"))[2] == b"well"
        await faults.reached("edge.preload.before")
        os.kill(edge.front.processes.pid, signal.SIGSTOP)
        try:
            os.kill(worker, signal.SIGKILL)
            answer = asyncio.ensure_future(edge.call("two", b"well"))
            await until(lambda: edge.workers() == {spare})
            faults.let_go("edge.preload.before")
            assert (await asyncio.wait_for(answer, scaled(60)))[2] == b"well"
            # It loads no more functions in advance, now that it has calls.
            (link,) = [link for link in edge.front.pool.links if link.child.pid == spare]
            assert len(link.preloaded) == 1
        finally:
            os.kill(edge.front.processes.pid, signal.SIGCONT)


async def test_a_spare_worker_loads_those_that_are_called_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PRELOADED", 2)
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"rare": guest("echo"), "often": guest("slow"), "more": guest("sql"), "most": guest("raw")})
        for name, times in (("most", 3), ("more", 2), ("often", 4), ("rare", 1)):
            for _ in range(times):
                await edge.call(name)
        # The one that is there now, should a worker have ended before.
        await until(lambda: idle_spare(edge) is not None)
        (spare,) = edge.spares()
        os.kill(spare, signal.SIGKILL)
        await until(lambda: spare_has(edge, local(edge, "most")) and edge.spares() != {spare})
        (pid,) = edge.spares()
        assert has(pid, local(edge, "often"))
        assert not has(pid, local(edge, "rare"))
        assert not has(pid, local(edge, "more"))


async def test_a_function_whose_load_ends_spare_workers_is_left_to_its_callers(tmp_path: Path, faults: Faults) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        await until(lambda: idle_spare(edge) is not None)
        faults.arm("edge.preload.before", "kill")
        assert (await edge.call("echo", b"well"))[2] == b"well"
        for deaths in range(1, supervisor.LOAD_TRIES + 1):
            await until(lambda deaths=deaths: edge.front.pool.deaths == deaths)
            faults.arm("edge.preload.before", "kill")
        await until(lambda: idle_spare(edge) is not None)
        (spare,) = edge.spares()
        assert not has(spare, local(edge, "echo"))
        (worker,) = edge.workers()
        os.kill(worker, signal.SIGKILL)
        assert (await edge.call("echo", b"well"))[2] == b"well"
        assert has(spare, local(edge, "echo"))


async def test_damaged_code_that_a_spare_worker_finds_is_made_again(tmp_path: Path) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        await until(lambda: idle_spare(edge) is not None)
        assert (await edge.call("echo", b"well"))[2] == b"well"
        await until(lambda: spare_has(edge, local(edge, "echo")))
        function = local(edge, "echo")
        damaged = Path(function.aot).with_suffix(".new")
        damaged.write_bytes(Path(function.aot).read_bytes()[:-1] + b"x")
        damaged.replace(function.aot)
        told: list[str] = []
        monkey = edge.front.hooks
        original, monkey.damaged = monkey.damaged, told.append
        try:
            (spare,) = edge.spares()
            os.kill(spare, signal.SIGKILL)
            await until(lambda: bool(told))
        finally:
            monkey.damaged = original
        assert told[0] == function.sha256
        # The calls don't notice.
        (worker,) = edge.workers()
        os.kill(worker, signal.SIGKILL)
        assert (await edge.call("echo", b"well"))[2] == b"well"


async def test_a_successor_is_born_at_once_only_where_a_place_is_empty(tmp_path: Path, clock: MovedClock) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo")})
        await until(lambda: idle_spare(edge) is not None)
        (worker,), (spare,) = edge.workers(), edge.spares()
        with clock.standing():
            os.kill(worker, signal.SIGKILL)
            await until(lambda: edge.workers() == {spare})
            assert {link.child.pid for link in edge.front.pool.links} == {spare}
            os.kill(spare, signal.SIGKILL)
            assert (await edge.call("echo", b"well"))[2] == b"well"
            assert len(edge.front.pool.links) == 1
            await clock.move(supervisor.SUCCESSION)
            await until(lambda: idle_spare(edge) is not None)


async def test_a_release_does_not_wait_for_a_spare_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads one set after the other, when it comes to it."""
    told: list[WorkerLink] = []
    load = Supervisor._load

    def noted(self: Supervisor, link: WorkerLink, serial: int) -> object:
        told.append(link)
        return load(self, link, serial)

    monkeypatch.setattr(Supervisor, "_load", noted)
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"version": (version(1), {})})
        await until(lambda: idle_spare(edge) is not None)
        spare = idle_spare(edge)
        assert spare is not None
        told.clear()
        os.kill(spare.child.pid, signal.SIGSTOP)
        try:
            for number in (2, 3, 4):
                async with asyncio.timeout(60):
                    await edge.release({"version": (version(number), {})})
                assert orjson.loads((await edge.call("version"))[2])["version"] == number
            assert told.count(spare) == 1
        finally:
            os.kill(spare.child.pid, signal.SIGCONT)
        await until(lambda: spare.serials == spare.ordered == {edge.front.pool.serial})
        # What was served meanwhile isn't loaded any more.
        assert told.count(spare) == 2
        (worker,) = edge.workers()
        os.kill(worker, signal.SIGKILL)
        await until(lambda: edge.workers() == {spare.child.pid})
        assert orjson.loads((await edge.call("version"))[2])["version"] == 4


async def test_a_spare_worker_that_takes_a_place_loads_what_is_served_first(tmp_path: Path) -> None:
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"version": (version(1), {})})
        await until(lambda: idle_spare(edge) is not None)
        spare = idle_spare(edge)
        assert spare is not None
        os.kill(spare.child.pid, signal.SIGSTOP)
        try:
            for number in (2, 3):
                await edge.release({"version": (version(number), {})})
            os.kill(edge.front.processes.pid, signal.SIGSTOP)
            (worker,) = edge.workers()
            os.kill(worker, signal.SIGKILL)
            answer = asyncio.ensure_future(edge.call("version"))
            await until(lambda: not spare.spare)
        finally:
            os.kill(spare.child.pid, signal.SIGCONT)
        try:
            assert orjson.loads((await asyncio.wait_for(answer, scaled(60)))[2])["version"] == 3
            assert spare.serials == {edge.front.pool.serial}
        finally:
            os.kill(edge.front.processes.pid, signal.SIGCONT)
