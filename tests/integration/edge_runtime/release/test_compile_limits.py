"""What a compilation may cost: a module that asks for more ends its own compiler, and nothing else."""

import asyncio
import hashlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

import edge_runtime
from edge_runtime.aot_cache import AotFile
from edge_runtime.children import compile_child
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.ipc.frames import Compile
from edge_runtime.release import compile_jobs
from edge_runtime.release.compile_jobs import TRIES
from edge_runtime.release.compiler import Compiler
from edge_runtime.sandbox import fence
from edge_runtime.wasmedge import QUICK, CompileError
from tests.guests.build import guest
from tests.guests.hostile import leb, module
from tests.support.deadlines import scaled
from tests.support.edge import Node, node, until

ROOT = Path(edge_runtime.__file__).parents[1]
SLOW = module(functions=100_000, bodies=[b"\0\x0b"] * 100_000)
"""It takes ten seconds."""
LARGE = module(functions=40, bodies=[b"\1" + leb(50_000) + b"\x7f\x0b"] * 40)
"""As many local variables as the check lets through: 2 GB."""

CHILD = """
import socket, sys
from edge_runtime.children import compile_child
from edge_runtime.sandbox import fence
from edge_runtime.ipc import frame_reader, frames
compile_child.DATA_BYTES = 300 * 1024**2
fence.seal = lambda kind: None
fence.narrow = lambda files: None
ours, theirs = socket.socketpair()
frames.send_json(ours, 0, frames.COMPILE, frames.Compile(*sys.argv[1:4], 0))
compile_child.serve(theirs, None, 0, None)
print(frame_reader.FrameReader(ours).next().kind)
"""

pytestmark = pytest.mark.usefixtures("real_compilation")


def child(wasm: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "module.wasm"
    path.write_bytes(wasm)
    shutil.rmtree(folder / "aot", ignore_errors=True)
    command = [sys.executable, "-c", CHILD, str(path), hashlib.sha256(wasm).hexdigest(), str(folder / "aot")]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=scaled(100))


def test_a_compiler_that_needs_too_much_memory_dies_and_leaves_nothing(tmp_path: Path) -> None:
    ran = child(LARGE, tmp_path)
    assert ran.returncode in (-signal.SIGABRT, -signal.SIGSEGV), ran.stderr
    assert list((tmp_path / "aot").glob("*.so")) == []
    ran = child(guest("echo"), tmp_path)
    assert (ran.returncode, ran.stdout.strip()) == (0, str(frames.COMPILED)), ran.stderr
    assert sorted(path.suffix for path in (tmp_path / "aot").iterdir()) == [".sha256", ".so"]


def test_a_failure_once_compiled_code_was_told_of_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The front has its answer by then, and takes no second one."""

    def fails(_: bytes, folder: Path, __: int, made: Callable[[AotFile], None]) -> None:
        made(AotFile(folder / "module.so", "abc"))
        raise CompileError(1, "WasmEdge can't compile the module")

    monkeypatch.setattr(compile_child, "compile_artifact", fails)
    monkeypatch.setattr(fence, "narrow", lambda _: None)
    (tmp_path / "module.wasm").write_bytes(b"")
    order = Compile(str(tmp_path / "module.wasm"), hashlib.sha256(b"").hexdigest(), str(tmp_path / "work"), QUICK)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            compile_child._compile(theirs, order)
        reader = FrameReader(ours)
        answer = reader.next()
        assert answer is not None
        assert (answer.kind, reader.next()) == (frames.COMPILED, None)
    assert "failed once its code was linked: WasmEdge can't compile the module" in capfd.readouterr().err


class Dying:
    """Processes whose compilers die at once."""

    def __init__(self) -> None:
        self.births = 0
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def birth(self, *_: Any, **__: Any) -> Any:
        self.births += 1
        return self

    async def ask(self, *_: Any) -> frames.Frame:
        raise frames.ChildGone("process 7 ended in the middle of its work")

    def close(self) -> None:
        pass


async def test_a_compiler_that_dies_again_and_again_is_the_modules_fault(tmp_path: Path) -> None:
    processes: Any = Dying()
    compiler = Compiler(tmp_path, tmp_path, processes, 10.0, 1.0)
    with pytest.raises(SyncFailed, match="the compiler died of artifact abc") as failed:
        await compiler.compile("abc", QUICK)
    assert failed.value.code == "compile_crashed"
    assert processes.births == TRIES


@pytest.mark.parametrize("code", ["compile_io", "database_held", "database_unfit", "disk_full", "no_process"])
def test_what_is_not_the_artifacts_fault_is_tried_again(tmp_path: Path, code: str) -> None:
    compiler = Compiler(tmp_path, tmp_path, cast(Any, None), 10.0, 1.0)
    compiler.give_up({"abc"}, code)
    compiler.give_up({"def"}, "function_unloadable")
    assert (compiler.postponed, compiler._hopeless) == ({"abc"}, {"def"})


async def compiled(edge: Node, wasm: bytes) -> None:
    sha256 = hashlib.sha256(wasm).hexdigest()
    (edge.state.artifacts / f"{sha256}.wasm").write_bytes(wasm)
    await edge.front.compiler.compile(sha256, QUICK)


@pytest.mark.parametrize("place", ["missing/own", "taken"])
async def test_a_folder_that_the_compiler_cannot_make_is_the_disks_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async with node(tmp_path / "state") as edge:
        (edge.state.aot / "taken").mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(compile_jobs, "work_folder", lambda folder: folder / place)
            with pytest.raises(SyncFailed, match=f"can't be written: .*{place}.*; look at the disk") as failed:
                await compiled(edge, guest("echo"))
        assert failed.value.code == "compile_io"
        await compiled(edge, guest("echo"))


async def test_a_compilation_has_its_time_and_the_node_serves_meanwhile(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": guest("echo")})
        # What the node needs itself had all the time of a slow machine.
        edge.front.compiler.compilations._limit = 3.0
        waiting = asyncio.ensure_future(compiled(edge, SLOW))
        while not waiting.done():
            assert (await edge.call("echo", b"x"))[2] == b"x"
            await asyncio.sleep(0.02)
        with pytest.raises(SyncFailed, match="wasn't compiled after 3 s") as failed:
            await waiting
        assert failed.value.code == "compile_timeout"
        await until(lambda: not list(edge.state.aot.glob(".compile-*")))
        assert edge.front.processes.zygotes == 1
