"""More and larger modules than a worker has memory for: each is loaded when it is called and given up when memory is
short, and compiling goes on, whatever becomes of the sync that wanted it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.parts import modules
from edge_runtime import aot_cache
from edge_runtime.aot_cache import QUICK
from edge_runtime.children.worker import AT_ONCE
from edge_runtime.dispatch import trial_load
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.zygote_client import NotBorn
from edge_runtime.release import compile_jobs, manager
from edge_runtime.release.compile_jobs import CompileJobs
from edge_runtime.settings import EdgeSettings
from tests.guests.build import guest
from tests.support.deadlines import scaled
from tests.support.edge import BACKGROUND, Node, node, until
from tests.support.moved_clock import MovedClock

MIB = 1024 * 1024
LITTLE = {"worker_memory": 128 * MIB}
"""The least: 64 MiB of it for functions."""
SIZE = 800_000
"""Bytes of code, which take 11 MiB on the interpreter, and more while they run."""
MANY = 10

pytestmark = pytest.mark.timeout(600)


def module(number: int, size: int) -> tuple[bytes, dict[str, Any]]:
    return modules.make(number, size), {"abi": "direct"}


async def never(*_: Any) -> Any:
    await asyncio.Event().wait()


@pytest.mark.usefixtures("programs_by_exec")
async def test_functions_that_need_more_memory_than_there_is_all_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the interpreter, as on a node that has lost its compiled code; at a start, too."""
    monkeypatch.setattr(CompileJobs, "_compile", never)
    settings = {**LITTLE, "workers": 1, "compile_wait": 0.001}
    async with node(tmp_path / "state", **settings) as edge:
        await edge.release({f"m{n}": module(n, SIZE) for n in range(MANY)})
        await all_answer(edge)
    async with node(tmp_path / "state", **settings) as edge:
        await all_answer(edge)


async def all_answer(edge: Node) -> None:
    before = edge.workers()
    for n in (*range(MANY), *range(MANY)):
        status, _, body = await edge.call(f"m{n}")
        assert (status, body) == (200, modules.answer(n))
    assert edge.workers() == before
    assert edge.front.pool.deaths == 0


async def test_what_can_not_fit_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    async with node(tmp_path / "state", **LITTLE) as edge:
        await edge.release({"echo": guest("echo")})
        plan, local = edge.plan({"echo": guest("echo"), "big": module(1, 3_000_000)})
        echo, big = local
        path = edge.state.artifacts / f"{big.sha256}.wasm"
        (echo,) = await edge.front.compiler.functions([echo])
        with pytest.raises(SyncFailed) as failed:
            await edge.front.manager.apply(plan, [echo, msgspec.structs.replace(big, wasm=str(path))])
        assert failed.value.code == "function_too_large"
        assert "64 MiB" in failed.value.message
        assert (await edge.call("echo", b"on"))[2] == b"on"
        assert edge.front.manager.release is not None
        assert edge.front.manager.release.number == 1
        assert edge.front.pool.deaths == 0


async def test_what_is_too_large_for_the_interpreter_waits_for_its_compiled_code(tmp_path: Path) -> None:
    async with node(tmp_path / "state", compile_wait=0.001) as edge:
        edge.front.compiler._code_memory = MIB
        await edge.release({"big": module(1, 100_000)})
        assert edge.front.status()["functions"][0]["compiled"]
        assert (await edge.call("big"))[2] == modules.answer(1)


@pytest.mark.usefixtures("real_compilation")
async def test_a_compilation_that_nobody_waits_for_any_more_goes_on(tmp_path: Path) -> None:
    """A sync that was refused, superseded or ended: the next one finds what was compiled."""
    async with node(tmp_path / "state") as edge:
        _, local = edge.plan({"big": module(1, 300_000)})
        attempt = asyncio.ensure_future(edge.front.compiler.functions(local, {"big"}))
        name, jobs = (local[0].sha256, QUICK), edge.front.compiler.compilations._jobs
        await until(lambda: attempt.done() or (name in jobs and jobs[name].started))
        attempt.cancel()
        await until(lambda: aot_cache.find(edge.state.aot, local[0].sha256, QUICK), scaled(BACKGROUND))


async def test_all_functions_are_compiled_quickly_before_one_is_at_its_best(tmp_path: Path) -> None:
    async with node(tmp_path / "state", best=aot_cache.BEST, compile_wait=0.001) as edge:
        levels = []
        make = edge.front.compiler.compilations.make

        async def seen(sha256: str, level: int, *, background: bool) -> Any:
            if background:
                levels.append(level)
            return await make(sha256, level, background=background)

        edge.front.compiler.compilations.make = seen  # type: ignore[method-assign]
        await edge.release({f"m{n}": module(n, 4000) for n in range(4)})
        await until(lambda: all(f["best"] for f in edge.front.status()["functions"]), scaled(BACKGROUND))
        assert levels == sorted(levels)


async def test_what_only_the_loader_reads_of_compiled_code_is_dropped(tmp_path: Path) -> None:
    """A third of each file."""
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"big": module(1, 300_000)})
        assert (await edge.call("big"))[2] == modules.answer(1)
        (pid,) = edge.workers()
        sizes = mapped_from(edge.state.aot, pid)
        assert sizes["r-xp"] > 100_000
        assert sizes["r--p"] < 100_000, "the artifact in it"


def mapped_from(folder: Path, pid: int) -> dict[str, int]:
    """Bytes that a process has resident of the files in a folder, by the permissions of the mappings."""
    sizes: dict[str, int] = {}
    for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        head, _, rest = block.partition("\n")
        if str(folder) in head:
            permissions = head.split()[1]
            found = re.search(r"Rss: +(\d+)", rest)
            assert found is not None
            sizes[permissions] = sizes.get(permissions, 0) + int(found[1]) * 1024
    return sizes


async def test_a_few_new_functions_are_loaded_before_they_are_called(tmp_path: Path) -> None:
    """Where many come at once, that would take long, and memory."""
    async with node(tmp_path / "state") as edge:
        functions = {"echo": guest("echo")}
        await edge.release(functions)
        functions |= {"new": guest("env")}
        await edge.release(functions)
        # A worker may be at it still: only calls wait for that.
        (new,) = (f for f in served(edge) if f.name == "new")
        await until(lambda: all(Path(new.aot).name in maps(pid) for pid in edge.workers()), scaled(BACKGROUND))
        lose(edge, "new")
        for _ in range(10):
            assert (await edge.call("new"))[0] == 200
        many = {f"m{n}": module(n, 1000) for n in range(AT_ONCE + 1)}
        await edge.release(functions | many)
        lose(edge, "m0")
        assert (await edge.call("m0"))[0] == 503


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def lose(edge: Node, name: str) -> None:
    """All files of a function's code."""
    (function,) = (f for f in served(edge) if f.name == name)
    Path(function.wasm).unlink()
    Path(function.aot).unlink()


async def test_code_that_was_damaged_is_interpreted_and_made_again(tmp_path: Path) -> None:
    """No call fails of it."""
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"echo": guest("echo"), "other": module(1, 20_000)})
        assert (await edge.call("other"))[0] == 200
        (echo,) = (f for f in served(edge) if f.name == "echo")
        damaged = Path(echo.aot).with_suffix(".new")
        damaged.write_bytes(Path(echo.aot).read_bytes()[:-1] + b"x")
        damaged.replace(echo.aot)
        assert aot_cache.find(edge.state.aot, echo.sha256, QUICK) is None
        assert (await edge.call("echo", b"well"))[::2] == (200, b"well")
        await until(lambda: aot_cache.find(edge.state.aot, echo.sha256, QUICK), scaled(BACKGROUND))
        await until(lambda: edge.front.status()["functions"][0]["best"], scaled(BACKGROUND))
        assert (await edge.call("echo", b"again"))[::2] == (200, b"again")


async def test_damaged_code_of_what_is_too_large_for_the_interpreter_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EdgeSettings, "code_memory", MIB)
    async with node(tmp_path / "state", workers=1) as edge:
        await edge.release({"large": module(1, 100_000)})
        (function,) = served(edge)
        assert aot_cache.memory_estimate(function.wasm, compiled=False) > MIB
        code = Path(function.aot)
        whole = code.read_bytes()
        damaged = code.with_suffix(".new")
        damaged.write_bytes(whole[:-1] + b"x")
        damaged.replace(code)
        edge.front.manager.damaged(function.sha256)

        def is_whole() -> bool:
            try:
                return code.read_bytes() == whole
            except FileNotFoundError:
                # It was removed, and isn't made again yet.
                return False

        await until(is_whole, scaled(BACKGROUND))
        await until(lambda: not edge.front.compiler._damaged, scaled(BACKGROUND))
        assert (await edge.call("large"))[0] == 200
        assert not edge.front.compiler._hopeless


@pytest.mark.parametrize("error", [SyncFailed("compile_io", "No space left on device"), NotBorn("no process")])
async def test_a_shortage_while_code_is_made_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: MovedClock, error: Exception
) -> None:
    """What can't be compiled for want of room or a process is compiled later."""
    monkeypatch.setattr(compile_jobs, "TRIES", 1)
    real, tries, short = CompileJobs._compile, 0, asyncio.Event()

    async def child(self: CompileJobs, *given: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries > 1:
            return await real(self, *given)
        await short.wait()
        raise error

    monkeypatch.setattr(CompileJobs, "_compile", child)
    async with node(tmp_path / "state", compile_wait=0.001) as edge:
        await edge.release({"echo": guest("echo")})
        assert not served(edge)[0].aot
        short.set()
        await until(lambda: edge.front.compiler.postponed)
        with clock.standing():
            await clock.move(manager.POSTPONED / 2)
            assert tries == 1
            await clock.move(manager.POSTPONED)
        await until(lambda: served(edge)[0].aot, scaled(BACKGROUND))
        assert tries == 2


async def test_a_function_whose_loading_ends_its_process_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo")})
        birth = edge.front.processes.birth

        async def killed(kind: Any, **more: Any) -> Any:
            child = await birth(kind, **more)
            if kind == "applier":
                child.kill()
            return child

        plan, local = edge.plan({"echo": guest("echo"), "env": guest("env")})
        functions = await edge.front.compiler.functions(local)
        monkeypatch.setattr(edge.front.processes, "birth", killed)
        with pytest.raises(SyncFailed, match=f"env ended, {trial_load.TRIES} times") as failed:
            await edge.front.manager.apply(plan, functions)
        assert failed.value.code == "module_load_crashed"
        assert (await edge.call("echo", b"on"))[2] == b"on"


def served(edge: Node) -> list[LocalFunction]:
    assert edge.front.manager.release is not None
    return edge.front.manager.release.functions
