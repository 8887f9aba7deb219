"""A new function starts on the interpreter where its compilation takes long, and changes over without a failed call."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.aot_cache import AotFile
from edge_runtime.errors import SyncFailed
from edge_runtime.release.compile_jobs import CompileJobs
from edge_runtime.wasmedge import BEST
from tests.guests.build import guest
from tests.guests.version import version
from tests.support.deadlines import deadline, scaled
from tests.support.edge import BACKGROUND, Node, node, until

IMPATIENT = 0.0001

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def may_compile(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """While it isn't set, `echo` isn't compiled: on a busy machine its code might be there before a test looks."""
    run, may_go_on, echo = CompileJobs._run, asyncio.Event(), hashlib.sha256(guest("echo")).hexdigest()

    async def later(self: CompileJobs, job: Any, module: Any) -> AotFile:
        if module.sha256 == echo:
            await may_go_on.wait()
        return await run(self, job, module)

    monkeypatch.setattr(CompileJobs, "_run", later)
    return may_go_on


async def test_a_new_function_answers_before_it_is_compiled(tmp_path: Path, may_compile: asyncio.Event) -> None:
    async with node(tmp_path / "state", best=BEST, compile_wait=IMPATIENT) as edge:
        await edge.release({"echo": guest("echo")})
        assert on(edge) == ["interpreter"]
        calls = 0
        async with deadline(BACKGROUND):
            while on(edge) != ["best"]:
                status, _, body = await edge.call("echo", b"%d" % calls)
                assert (status, body) == (200, b"%d" % calls)
                calls += 1
                may_compile.set()
        assert calls > 0
        assert (await edge.call("echo", b"after"))[2] == b"after"


@pytest.mark.usefixtures("may_compile")
async def test_what_serves_compiled_code_waits_for_the_next_version_s(tmp_path: Path) -> None:
    async with node(tmp_path / "state", compile_wait=IMPATIENT) as edge:
        _, local = edge.plan({"version": version(1), "echo": guest("echo")})
        made = await edge.front.compiler.functions(local, {"version"})
        assert [bool(function.aot) for function in made] == [True, False]
        assert [function.code[0].rpartition(".")[2] for function in made] == ["so", "wasm"]


async def test_a_node_that_lost_its_compiled_code_serves_at_once(tmp_path: Path, may_compile: asyncio.Event) -> None:
    state = tmp_path / "state"
    may_compile.set()
    async with node(state) as edge:
        await edge.release({"echo": guest("echo")})
    # A compilation's folder may be there for a moment after the node's end.
    for path in [*(state / "aot").glob("*.so"), *(state / "aot").glob("*.sha256")]:
        path.unlink()
    may_compile.clear()
    async with node(state, compile_wait=IMPATIENT) as edge:
        assert on(edge) == ["interpreter"]
        assert (await edge.call("echo", b"again"))[2] == b"again"
        may_compile.set()
        await until(lambda: on(edge) == ["best"], scaled(BACKGROUND))


async def test_an_artifact_that_was_damaged_is_not_interpreted(tmp_path: Path) -> None:
    async with node(tmp_path / "state", compile_wait=IMPATIENT) as edge:
        plan, local = edge.plan({"echo": guest("echo")})
        made = await edge.front.compiler.functions(local)
        Path(made[0].code[0]).write_bytes(guest("env"))
        with pytest.raises(SyncFailed) as failed:
            await edge.front.manager.apply(plan, made)
        assert failed.value.code == "function_unloadable"


async def test_endless_recursion_on_the_interpreter_costs_its_own_call(tmp_path: Path) -> None:
    async with node(tmp_path / "state", compile_wait=IMPATIENT) as edge:
        await edge.release({"overflow": (guest("overflow"), {"time_limit_ms": 500}), "echo": guest("echo")})
        if on(edge)[1] == "interpreter":
            status, _ = await edge.problem("overflow")
            assert status in (502, 504, 507)
        assert (await edge.call("echo", b"well"))[2] == b"well"


def on(edge: Node) -> list[str]:
    """What each function runs on, by name."""
    functions = sorted(edge.front.status()["functions"], key=lambda f: str(f["name"]))
    return ["best" if f["best"] else "quick" if f["compiled"] else "interpreter" for f in functions]
