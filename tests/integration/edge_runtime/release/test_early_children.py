"""What a release needs is begun early: it is taken where it lives, and ended where nobody takes it."""

import asyncio
import contextlib
import errno
import hashlib
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime import aot_cache
from edge_runtime.aot_cache import QUICK
from edge_runtime.children import compile_child
from edge_runtime.children.compile_child import HEAP_BYTES
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.early_child import EarlyChild
from edge_runtime.ipc.frames import Compile, Compiled
from edge_runtime.ipc.zygote_client import Child, NotBorn
from edge_runtime.release import compile_jobs, compiler, manager
from edge_runtime.release.compile_jobs import CompileJobs
from tests.guests.version import version
from tests.support.deadlines import scaled
from tests.support.edge import BACKGROUND, Node, node, until
from tests.support.moved_clock import MovedClock

REHEARSED = 2_500_000
"""Bytes that a child has written once LLVM is ready in it; without, 1.5 million."""
RESTED = 12_000_000
"""Bytes of LLVM's program that a child has mapped once it has given them back; 6 million, of 42."""


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Node]:
    async with node(tmp_path / "state") as running:
        yield running


@pytest.fixture
def born(edge: Node, monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """The children that are born, but for workers."""
    made: list[Child] = []
    birth = edge.front.processes.birth

    async def noted(kind: Any, **more: Any) -> Child:
        child = await birth(kind, **more)
        if kind != "worker":
            made.append(child)
        return child

    monkeypatch.setattr(edge.front.processes, "birth", noted)
    return made


async def test_one_that_was_begun_is_taken_once(edge: Node, born: list[Child]) -> None:
    early = EarlyChild(edge.front.processes, "compiler")
    early.begin()
    early.begin()
    await until(lambda: born)
    taken, other = await early.take(), await early.take()
    assert [taken, other] == born
    for child in born:
        child.close()


async def test_one_that_has_ended_is_not_handed_out(edge: Node, born: list[Child]) -> None:
    early = EarlyChild(edge.front.processes, "applier")
    early.begin()
    await until(lambda: born)
    born[0].kill()
    await born[0].exited
    taken = await early.take()
    assert taken is born[1]
    assert not taken.exited.done()
    taken.close()


@pytest.mark.parametrize("awaited", [True, False])
async def test_one_that_nobody_takes_is_ended(edge: Node, born: list[Child], awaited: bool) -> None:
    early = EarlyChild(edge.front.processes, "applier")
    early.begin()
    if awaited:
        await until(lambda: born)
    else:
        await asyncio.sleep(0)
    early.dismiss()
    for child in born:
        await child.exited
    # But for the one that waits for something to compile.
    links = edge.front.pool.links
    await until(lambda: len(set(edge.front.processes._children) - {link.child.id for link in links}) == 1)
    early.dismiss()


async def test_where_none_could_be_begun_it_is_asked_for_again(edge: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    early, birth = EarlyChild(edge.front.processes, "compiler"), edge.front.processes.birth

    async def short(*_: Any, **__: Any) -> Child:
        raise NotBorn("no process")

    with monkeypatch.context() as patched:
        patched.setattr(edge.front.processes, "birth", short)
        early.begin()
        await asyncio.sleep(0)
        with pytest.raises(NotBorn):
            await early.take()
        early.begin()
        await asyncio.sleep(0)
        patched.setattr(edge.front.processes, "birth", birth)
        (await early.take()).close()
        patched.setattr(edge.front.processes, "birth", short)
        early.begin()
        await asyncio.sleep(0)
        # Nobody hears of the failure of one that nobody needs.
        early.dismiss()


async def test_a_release_is_made_by_one_that_waited_to_compile_and_one_that_tries_and_applies(
    edge: Node, born: list[Child]
) -> None:
    await until(lambda: memory(edge))
    await edge.release({"version": (version(1), {})})
    assert len(born) == 1
    for child in born:
        await child.exited


async def test_one_that_is_given_back_is_taken_again(edge: Node, born: list[Child]) -> None:
    early = EarlyChild(edge.front.processes, "applier")
    taken = await early.take()
    # Another one was begun meanwhile: it is ended.
    early.begin()
    await until(lambda: len(born) == 2)
    early.give_back(taken)
    await born[1].exited
    assert await early.take() is taken
    early.give_back(taken)
    early.dismiss()
    await taken.exited


def memory(edge: Node) -> int:
    """Bytes that the child has written for itself that waits for something to compile; 0 where there is none."""
    tasks = edge.front.compiler.compilations._early._tasks
    return 0 if not tasks or not tasks[-1].done() else pages(tasks[-1].result(), "Private_Dirty")


def pages(child: Child, kind: str) -> int:
    rollup = Path(f"/proc/{child.pid}/smaps_rollup").read_text()
    return int(rollup.partition(f"{kind}:")[2].split()[0]) * 1024


@pytest.mark.usefixtures("real_compilation")
async def test_one_that_waits_has_compiled_before_and_keeps_little_of_that(edge: Node) -> None:
    await until(lambda: REHEARSED < memory(edge) < HEAP_BYTES)
    await until(lambda: not list(edge.state.aot.iterdir()))
    _, local = edge.plan({"version": version(1)})
    made = await edge.front.compiler.functions(local)
    again = await edge.front.processes.birth("compiler")
    work = aot_cache.work_folder(edge.state.aot)
    order = Compile(str(edge.state.artifacts / f"{local[0].sha256}.wasm"), local[0].sha256, str(work), QUICK)
    with contextlib.closing(again):
        answer = await again.ask(frames.COMPILE, order, 60.0)
    # One that hasn't makes the same.
    assert msgspec.json.decode(answer.body, type=Compiled).digest == made[0].aot_digest
    shutil.rmtree(work)


@pytest.mark.usefixtures("real_compilation")
async def test_one_that_waits_gives_back_what_it_has_mapped(edge: Node) -> None:
    await until(lambda: memory(edge) > REHEARSED and 0 < of_llvm(edge) < RESTED)


def of_llvm(edge: Node) -> int:
    """Bytes of LLVM's program that the child has mapped that waits for something to compile."""
    tasks = edge.front.compiler.compilations._early._tasks
    if not tasks or not tasks[-1].done():
        return 0
    blocks = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{tasks[-1].result().pid}/smaps").read_text())
    found = [re.search(r"Rss: +(\d+)", block) for block in blocks if "libLLVM" in block.partition("\n")[0]]
    return sum(int(rss[1]) for rss in found if rss) * 1024


def test_a_disk_that_hinders_it_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compile_child._rehearse(tmp_path / "missing")
    told = capfd.readouterr().err
    assert "couldn't be made ready" in told
    assert str(tmp_path / "missing") in told


async def test_another_one_waits_where_it_has_ended(edge: Node, born: list[Child]) -> None:
    await until(lambda: memory(edge))
    waiting = edge.front.compiler.compilations._early._tasks[-1].result()
    waiting.kill()
    await waiting.exited
    edge.front.compiler.stand_by()
    await until(lambda: len(born) == 1 and memory(edge))


async def test_compiled_code_is_on_disk_before_its_release_is_prepared(
    edge: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, real = asyncio.Event(), aot_cache.put_on_disk
    loop, slow = asyncio.get_running_loop(), asyncio.Event()

    def waits(*given: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(slow.wait(), loop).result(scaled(60))
        real(*given)

    monkeypatch.setattr(compile_jobs, "put_on_disk", waits)
    release = asyncio.ensure_future(edge.release({"version": (version(1), {})}))
    await begun.wait()
    # The workers have it by then, and nothing is held.
    await until(lambda: all(link.serials for link in edge.front.pool.links if link.usable))
    assert not edge.front.pool.applying
    assert edge.front.manager.release is None
    slow.set()
    await release
    assert edge.front.manager.release is not None


async def test_compiled_code_that_cannot_be_written_leaves_the_old_release_and_is_made_again(
    edge: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await edge.release({"version": (version(1), {})})

    def failing(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(aot_cache, "sync_folder", failing)
        with pytest.raises(SyncFailed, match=r"compiled code of artifact .* can't be written") as failed:
            await edge.release({"version": (version(2), {})})
    assert failed.value.code == "compile_io"
    # Nobody finds what a loss of power may have taken.
    assert aot_cache.find(edge.state.aot, hashlib.sha256(version(2)).hexdigest(), aot_cache.QUICK) is None
    assert edge.front.manager.release is not None
    assert edge.front.manager.release.number == 1
    await edge.release({"version": (version(2), {})})
    assert edge.front.manager.release.functions[0].aot


@pytest.mark.timeout(600)
async def test_better_code_that_cannot_be_written_is_not_used_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: MovedClock
) -> None:
    real, left = aot_cache.put_on_disk, []

    def fails_once(folder: Path, sha256: str, level: int) -> None:
        if level == aot_cache.BEST and not left:
            left.append(folder / f"{aot_cache.key(sha256, level)}.so")
            raise OSError(errno.EIO, "Input/output error")
        if level == aot_cache.BEST:
            left.append(left[0])
        real(folder, sha256, level)

    monkeypatch.setattr(compile_jobs, "put_on_disk", fails_once)
    async with node(tmp_path / "state", best=aot_cache.BEST) as edge:
        await edge.release({"version": (version(1), {})})
        await until(lambda: left and not left[0].exists(), scaled(BACKGROUND))
        await until(lambda: edge.front.compiler.postponed)
        await clock.move(manager.POSTPONED)
        clock.go()
        await until(lambda: edge.front.status()["functions"][0]["best"], scaled(BACKGROUND))
        assert len(left) == 2


@pytest.mark.timeout(600)
async def test_the_best_code_of_a_release_that_another_one_follows_at_once_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: MovedClock
) -> None:
    made: list[tuple[str, int]] = []
    real = compile_jobs.CompileJobs.make

    async def noted(jobs: CompileJobs, sha256: str, level: int, **more: Any) -> aot_cache.AotFile:
        made.append((sha256, level))
        return await real(jobs, sha256, level, **more)

    monkeypatch.setattr(compile_jobs.CompileJobs, "make", noted)
    shas = [hashlib.sha256(version(number)).hexdigest() for number in (1, 2)]
    async with node(tmp_path / "state", best=aot_cache.BEST) as edge:
        with clock.standing():
            for number in (1, 2):
                await edge.release({"version": (version(number), {})})
            assert edge.front.manager.release is not None
            await clock.move(compiler.CALM)
        await until(lambda: edge.front.status()["functions"][0]["best"], scaled(BACKGROUND))
    assert made == [(shas[0], aot_cache.QUICK), (shas[1], aot_cache.QUICK), (shas[1], aot_cache.BEST)]
