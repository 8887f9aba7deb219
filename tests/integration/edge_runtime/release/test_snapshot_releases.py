"""Snapshots on a node: their engine is compiled once, at the best level, and the release waits for that; then functions
of that engine come at once. They are never interpreted."""

import asyncio
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import aot_cache
from edge_runtime.aot_cache import BEST, QUICK
from edge_runtime.errors import SyncFailed
from edge_runtime.release.compile_jobs import CompileJobs
from edge_runtime.release.integrity_check import IntegrityCheck
from tests.guests.build import guest
from tests.support.edge import BACKGROUND, Node, node, until
from tests.support.snapshots import snapshot

MANIFEST = {"abi": "direct", "memory_pages": 300}
ORDER = bytes(12)
"""A call's body: nothing is written, and the call answers."""


def made(seed: int) -> bytes:
    """A snapshot; all are of one engine."""
    return snapshot(guest("snapshot_sum"), 9, [(5000, random.Random(seed).randbytes(300_000))])


def sha256_of(wasm: bytes) -> str:
    return hashlib.sha256(wasm).hexdigest()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is compiled: sha256 and level."""
    done: list[tuple[str, int]] = []
    real = CompileJobs._compile

    async def noted(jobs: CompileJobs, child: Any, work: Path, module: Any, background: bool) -> aot_cache.AotFile:
        done.append((module.sha256, module.level))
        return await real(jobs, child, work, module, background)

    monkeypatch.setattr(CompileJobs, "_compile", noted)
    return done


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """While it isn't set, no engine is compiled."""
    real, may_go_on = CompileJobs._compile, asyncio.Event()

    async def later(jobs: CompileJobs, child: Any, work: Path, module: Any, background: bool) -> aot_cache.AotFile:
        if module.path.suffix == ".engine":
            await may_go_on.wait()
        return await real(jobs, child, work, module, background)

    monkeypatch.setattr(CompileJobs, "_compile", later)
    yield may_go_on
    may_go_on.set()


def answered(said: tuple[int, Any, bytes]) -> bytes:
    assert said[0] == 200, said
    return said[2]


async def test_an_engine_is_compiled_once_for_all_its_functions(
    tmp_path: Path, compiled: list[tuple[str, int]]
) -> None:
    async with node(tmp_path / "state", best=BEST) as edge:
        await edge.release({"one": (made(1), MANIFEST), "two": (made(2), MANIFEST)})
        assert [level for _, level in compiled] == [BEST]
        first = [answered(await edge.call(name, ORDER)) for name in ("one", "two", "one")]
        assert first[0] == first[2] != first[1]
        await edge.release({"one": (made(3), MANIFEST), "two": (made(2), MANIFEST), "three": (made(1), MANIFEST)})
        assert len(compiled) == 1
        assert [answered(await edge.call(name, ORDER)) for name in ("three", "two")] == first[:2]
        assert {(f["compiled"], f["best"]) for f in edge.front.status()["functions"]} == {(True, True)}
        assert {f.wasm for f in edge.front.manager.release.functions} == {""}
    async with node(tmp_path / "state", best=BEST) as edge:
        assert [answered(await edge.call(name, ORDER)) for name in ("three", "two")] == first[:2]
        assert len(compiled) == 1


async def test_a_module_that_is_not_initialised_is_no_snapshot(tmp_path: Path, compiled: list[tuple[str, int]]) -> None:
    """Nobody else has its engine, and the interpreter can serve it."""
    large = snapshot(guest("echo"), 80, [(70 * 65536, bytes([1]) * 300_000)])
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": large})
        assert (await edge.call("echo", b"well"))[2] == b"well"
        assert compiled == [(sha256_of(large), QUICK)]


async def test_the_release_waits_for_the_engine_and_calls_do_not(
    tmp_path: Path, engine: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path / "state", compile_wait=0.001) as edge:
        await edge.release({"echo": guest("echo")})
        told: list[str] = []
        plan, local = edge.plan({"echo": guest("echo"), "one": (made(1), MANIFEST)})
        waiting = asyncio.ensure_future(edge.front.compiler.functions(local, tell=told.append))
        await until(lambda: told or waiting.done())
        assert told == ["the engine of one@2, once for all functions of it"]
        assert (await edge.call("echo", b"well"))[2] == b"well"
        assert not waiting.done()
        engine.set()
        await edge.front.manager.apply(plan, await waiting)
        assert answered(await edge.call("one", ORDER))


async def test_an_engine_has_a_limit_of_its_own(tmp_path: Path) -> None:
    async with node(tmp_path / "state", engine_compile_limit=0.001) as edge:
        with pytest.raises(
            SyncFailed, match=r"after 0\.001 s, which SKERRY_EDGE_ENGINE_COMPILE_LIMIT allows"
        ) as failed:
            await edge.release({"one": (made(1), MANIFEST)})
        assert failed.value.code == "compile_timeout"
        assert (await edge.problem("one"))[0] == 404


async def test_a_node_that_lost_its_engine_serves_the_others_and_says_what_it_waits_for(
    tmp_path: Path, engine: asyncio.Event
) -> None:
    engine.set()
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo"), "one": (made(1), MANIFEST)})
        before = answered(await edge.call("one", ORDER))
    for path in (tmp_path / "state" / "aot").iterdir():
        path.unlink()
    engine.clear()
    async with node(tmp_path / "state") as edge:
        assert (await edge.call("echo", b"well"))[2] == b"well"
        assert await edge.problem("one", ORDER) == (503, "function_uncompiled")
        assert b"still compiles its engine" in (await edge.call("one", ORDER))[2]
        engine.set()
        await until(lambda: all(f["compiled"] for f in edge.front.status()["functions"]), BACKGROUND)
        assert answered(await edge.call("one", ORDER)) == before


@pytest.mark.parametrize("damage", [".image", ".so"])
async def test_what_is_damaged_is_made_again(
    tmp_path: Path, compiled: list[tuple[str, int]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers have it mapped, and see the damage."""
    async with node(tmp_path / "state") as edge:
        await edge.release({"one": (made(1), MANIFEST), "two": (made(2), MANIFEST)})
        before = {name: answered(await edge.call(name, ORDER)) for name in ("one", "two")}
        (of,) = {f.image if damage == ".image" else f.aot for f in served(edge) if f.name == "one"}
    hurt = Path(of)
    whole = hurt.read_bytes()
    # Images can't be written to; this one can.
    hurt.unlink()
    hurt.write_bytes(whole)
    async with node(tmp_path / "state") as edge:
        assert {name: answered(await edge.call(name, ORDER)) for name in ("one", "two")} == before
        with hurt.open("r+b") as file:
            file.seek(-1, 2)
            file.write(bytes([whole[-1] ^ 1]))
        check = IntegrityCheck(edge.front.manager, edge.front.compiler, edge.front.processes, edge.state.artifacts)
        await check.check()
        assert check.status()["damaged"] == [hurt.name]
        names = "one@1, two@1" if damage == ".so" else "one@1"
        assert f"{names}: {hurt} is damaged or gone: it is made again" in caplog.text
        await until(lambda: aot_cache.find(edge.state.aot, sha256_of(made(1)), BEST), BACKGROUND)
        await until(lambda: not edge.front.compiler._damaged and all(f.aot for f in served(edge)), BACKGROUND)
        await check.check()
        assert check.status()["damaged"] == []
        assert len(compiled) == (2 if damage == ".so" else 1)
        await until(lambda: all(link.serials == {edge.front.pool.serial} for link in edge.front.pool.links))
        assert {name: answered(await edge.call(name, ORDER)) for name in ("one", "two")} == before


def served(edge: Node) -> list[Any]:
    release = edge.front.manager.release
    assert release is not None
    return release.functions


async def test_files_of_snapshots_go_with_their_functions(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release({"one": (made(1), MANIFEST), "two": (made(2), MANIFEST)})
        compiler = edge.front.compiler
        compiler.collect({sha256_of(made(2))})
        left = sorted(path.suffix for path in edge.state.aot.iterdir() if path.is_file())
        assert left == [".engine", ".image", ".sha256", ".so", ".split"]
        assert aot_cache.find(edge.state.aot, sha256_of(made(2)), QUICK) is not None
        assert aot_cache.find(edge.state.aot, sha256_of(made(1)), QUICK) is None
        compiler.collect(set())
        assert [path for path in edge.state.aot.iterdir() if path.is_file()] == []
