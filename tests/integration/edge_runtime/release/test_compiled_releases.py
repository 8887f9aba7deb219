"""The processes of a release, and the compiled code that it puts on disk."""

import asyncio
import errno
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import aot_cache
from edge_runtime.dispatch.trial_load import ReleaseApplier
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.release import compile_jobs, compiler, manager
from edge_runtime.release.compile_jobs import CompileJobs
from tests.guests.version import version
from tests.support.deadlines import scaled
from tests.support.edge import BACKGROUND, Node, node, until
from tests.support.moved_clock import MovedClock

REHEARSED = 2_500_000
"""Bytes that a child has written once LLVM is ready in it; without, 1.5 million."""


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


async def test_one_that_has_ended_is_not_handed_out(edge: Node, born: list[Child]) -> None:
    applier = ReleaseApplier(edge.front.processes)
    taken = await applier.take()
    applier.give_back(taken)
    taken.kill()
    await taken.exited
    other = await applier.take()
    assert born == [taken, other]
    other.close()


async def test_one_that_is_given_back_is_taken_again_and_ended_with_it(edge: Node, born: list[Child]) -> None:
    applier = ReleaseApplier(edge.front.processes)
    taken = await applier.take()
    # It is the taker's.
    applier.close()
    applier.give_back(taken)
    assert await applier.take() is taken
    applier.give_back(taken)
    applier.close()
    await taken.exited
    assert born == [taken]


async def test_a_release_is_made_by_one_that_compiles_and_one_that_tries_and_applies(
    edge: Node, born: list[Child]
) -> None:
    await edge.release({"version": (version(1), {})})
    assert len(born) == 2
    for child in born:
        await child.exited


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
