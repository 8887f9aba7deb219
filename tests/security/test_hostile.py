"""Modules that mean harm, through the real check and the real edge: each is refused when it is uploaded, or each of its
calls ends in its own status, and nobody else sees anything of it."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from control.edge_check import Checks, OperatorChecks
from control.problems import ProblemError
from edge_runtime.errors import SyncFailed
from edge_runtime.guests.guest import GuestFault, LoadedFunction, Request
from edge_runtime.oneshot.check import ModuleRefused, check_module
from edge_runtime.wasmedge import BEST
from tests.guests import hostile
from tests.guests.build import guest
from tests.support import forked_programs
from tests.support.edge import Node, node, until
from tests.support.functions import compiled, local
from tests.support.generated import generated
from tests.support.lent_node import NodeLender

REFUSED = hostile.refused()
ACCEPTED = hostile.accepted()
TOO_LARGE = "64 MiB and a byte"
"""Made only where it is used, as `hostile.largest`: each test process imports this module."""
SAMPLE = 20
"""Generated modules that go through the real edge; all of them go through test_generated's children."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest.fixture(autouse=True, scope="module")
def _real_compilation() -> Iterator[None]:
    """Also of the node that the module's tests are lent."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forked_programs, "real_compilation", True)
        yield


@pytest.fixture(scope="module")
def checks() -> OperatorChecks:
    return Checks(2, 60.0).of("somebody")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeLender]:
    functions = {name: (module.wasm, module.manifest) for name, module in ACCEPTED.items()}
    made = NodeLender(tmp_path_factory.mktemp("node"), {"echo": guest("echo"), **functions})
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def edge(lender: NodeLender) -> AsyncIterator[Node]:
    async with lender.lent() as lent:
        yield lent


@pytest.mark.parametrize("name", [*REFUSED, TOO_LARGE])
async def test_refused_when_it_is_uploaded(checks: OperatorChecks, tmp_path: Path, name: str) -> None:
    wasm, code = (hostile.too_large(), "module_too_large") if name == TOO_LARGE else REFUSED[name]
    file = tmp_path / "module.wasm"
    file.write_bytes(wasm)
    with pytest.raises(ProblemError) as refused:
        await checks.module(file, 64 * 1024 * 1024)
    assert refused.value.code == "module_refused"
    assert f"[{code}]" in str(refused.value)


async def test_the_others_are_accepted() -> None:
    modules = [*ACCEPTED.values(), hostile.largest()]
    assert [check_module(module.wasm)["abi"] for module in modules] == [
        module.manifest.get("abi", "wagi") for module in modules
    ]


async def test_a_memory_above_the_manifests_limit_fails_its_release(edge: Node) -> None:
    wasm = hostile.entry("", memory='(memory (export "memory") 65)')
    with pytest.raises(SyncFailed, match="starts with 65 pages; 1 to 64 are allowed") as failed:
        await edge.release({"large": (wasm, {"memory_pages": 64})})
    assert failed.value.code == "function_unloadable"
    assert await edge.problem("nothing") == (502, "guest_response_invalid")


async def end_of(edge: Node, name: str) -> tuple[int, str]:
    """Status and code with which a call ends; what is answered without a code is empty."""
    if ACCEPTED[name].code:
        return await edge.problem(name)
    status, _, body = await edge.call(name)
    assert body == b"", body
    return status, ""


@pytest.mark.parametrize("name", ACCEPTED)
async def test_a_call_ends_in_its_own_status(edge: Node, name: str) -> None:
    module = ACCEPTED[name]
    assert await end_of(edge, name) == (module.status, module.code)
    await until(lambda: len(edge.workers()) == 2)


async def test_a_trap_is_one_in_the_best_code_too(tmp_path: Path) -> None:
    """Where results are dropped, an optimizer could drop the trap with them."""
    traps = {name: module for name, module in ACCEPTED.items() if module.code == "guest_trap"}
    assert len(traps) > 20
    for name, module in traps.items():
        # The few large ones take LLVM seconds.
        if len(module.wasm) < 10_000:
            loaded = LoadedFunction.load(local(compiled(module.wasm, tmp_path, BEST), **module.manifest))
            with pytest.raises(GuestFault) as fault:
                loaded.call(Request("POST"))
            loaded.close()
            assert fault.value.code == "guest_trap", name


@contextlib.asynccontextmanager
async def as_quick_as_before(edge: Node) -> AsyncIterator[None]:
    """Others' calls are answered meanwhile, and the front itself is never held up."""
    asked, slowest = 0, 0.0

    async def others() -> None:
        nonlocal asked
        while True:
            body = b"%d" % asked
            assert (await edge.call("echo", body))[2] == body
            asked += 1
            await asyncio.sleep(0.005)

    async def front() -> None:
        nonlocal slowest
        while True:
            began = time.monotonic()
            async with edge.http.get("/_skerry/healthz") as answer:
                assert answer.status == 200
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(others()), group.create_task(front())]
        yield
        for task in tasks:
            task.cancel()
    assert asked > 10
    assert slowest < 4.0
    await until(lambda: len(edge.workers()) == 2)
    assert edge.front.processes.zygotes == 1


async def test_among_all_of_them_the_front_is_as_quick_as_before(edge: Node) -> None:
    async with as_quick_as_before(edge):
        for name, module in ACCEPTED.items():
            status, code = await end_of(edge, name)
            # A function that keeps killing workers is cut off.
            assert (status, code) in ((module.status, module.code), (503, "circuit_open")), name


async def test_a_module_as_large_as_it_may_be(tmp_path: Path) -> None:
    """In a release of its own: each worker that is born loads all functions of the release."""
    largest = hostile.largest()
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo")})
        async with as_quick_as_before(edge):
            await edge.release({"echo": guest("echo"), "largest": (largest.wasm, largest.manifest)})
            assert await edge.problem("largest") == (largest.status, largest.code)


async def test_generated_modules_end_in_their_own_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    functions = {}
    for module in random.Random("sample").sample(generated(500), SAMPLE):
        with contextlib.suppress(ModuleRefused):
            abi = check_module(module.wasm)["abi"]
            manifest = {"abi": abi, "entry": "run" if abi == "extism" else "", "time_limit_ms": 300, "memory_pages": 32}
            functions[module.name] = (module.wasm, manifest)
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo"), **functions})
        ends = []
        for name in functions:
            status, _, body = await edge.call(name, b"hello")
            ends.append(status)
            assert status in (200, 500, 502, 504, 507), (name, status, body)
            assert (await edge.call("echo", name.encode()))[2] == name.encode()
        assert edge.front.processes.zygotes == 1
    with capsys.disabled():
        counted = {status: ends.count(status) for status in sorted(set(ends))}
        print(
            f"\n{len(functions)} of {SAMPLE} generated modules went through the edge; their calls ended so: {counted}"
        )
    assert 502 in ends
