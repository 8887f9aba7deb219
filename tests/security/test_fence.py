"""What a child of the edge could still do if a guest had broken out of WasmEdge and had it in its hands."""

import asyncio
import contextlib
import hashlib
import mmap
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from edge_runtime.ipc import frames
from edge_runtime.ipc.births import ChildKind
from edge_runtime.ipc.zygote_client import Child, ZygoteClient
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import CHILD_KINDS, ProcessKind
from edge_runtime.state import State
from tests.support import taken_over
from tests.support.deadlines import deadline, scaled
from tests.support.taken_over import Answer, Ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORDINARY = 65_534
GIB = 1024**3


class TakenOver(ZygoteClient):
    PROGRAM = "tests.support.taken_over"


class Victim:
    """A child that does what it is asked to."""

    def __init__(self, child: Child, place: "Place") -> None:
        self.child = child
        self.state = place.state.path
        self.processes = place.processes

    async def ask(self, what: str, *arguments: Any) -> Answer:
        """Error: `frames.ChildGone` where it was ended for it."""
        frame = await self.child.ask(taken_over.ASK, Ask(what, list(arguments)), 60)
        return msgspec.json.decode(frame.body, type=Answer)

    async def refused(self, what: str, *arguments: Any) -> str:
        """Name of the errno or of the signal that it got for it; empty where it worked."""
        try:
            return (await self.ask(what, *arguments)).refused
        except frames.ChildGone:
            status = await asyncio.wait_for(self.child.exited, scaled(60))
            assert status is not None
            assert os.WIFSIGNALED(status), status
            return signal.Signals(os.WTERMSIG(status)).name


@dataclass
class Place:
    """A state directory and the zygote there, whose children are taken over."""

    state: State
    processes: ZygoteClient

    @contextlib.asynccontextmanager
    async def victim(self, kind: ChildKind = "worker") -> AsyncIterator[Victim]:
        with contextlib.closing(await asyncio.wait_for(self.processes.birth(kind), scaled(60))) as child:
            yield Victim(child, self)

    @contextlib.asynccontextmanager
    async def another(self) -> AsyncIterator["Place"]:
        """The same, with a zygote of its own."""
        async with zygote(self.state) as processes:
            yield Place(self.state, processes)


@contextlib.asynccontextmanager
async def zygote(state: State) -> AsyncIterator[ZygoteClient]:
    processes = TakenOver(frames.ChildSettings(str(state.path), "NORMAL", fence="required"), state.lock)
    running = asyncio.ensure_future(processes.run())
    try:
        first = asyncio.ensure_future(processes.birth("worker"))
        await asyncio.wait((running, first), timeout=scaled(60), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            first.cancel()
            await running
        (await asyncio.wait_for(first, 1)).close()
        yield processes
        assert processes.zygotes == 1, "one of its children has ended it"
    finally:
        running.cancel()
        await asyncio.wait([running])


USERS = [pytest.param(0, id="root"), pytest.param(ORDINARY, id="ordinary")] if os.geteuid() == 0 else [os.geteuid()]


@pytest_asyncio.fixture(params=USERS, scope="module", loop_scope="module")
async def place(request: Any) -> AsyncIterator[Place]:
    """As root and as an ordinary user, whom pytest's own folders don't let in."""
    uid = request.param
    folder = Path(tempfile.mkdtemp(prefix="skerry-fence-"))
    try:
        with State(folder / "state", 5) as state, pytest.MonkeyPatch.context() as patch:
            (state.artifacts / "there.wasm").write_bytes(b"wasm")
            (state.aot / "there.so").write_bytes(b"code")
            (state.path / "identity.json").write_text("secret")
            for path in (folder, *folder.rglob("*")):
                os.chown(path, uid, uid)
            if uid != os.geteuid():
                patch.setenv("SKERRY_TAKEN_OVER_UID", str(uid))
            async with zygote(state) as processes:
                yield Place(state, processes)
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def victim(place: Place) -> Any:
    """Makes children of a kind."""
    return place.victim


async def test_files(victim: Any) -> None:
    """It opens the database's folder and reads compiled code and artifacts, and that is all."""
    async with victim() as it:
        read, write = os.O_RDONLY, os.O_WRONLY
        state = it.state
        for path in ("/etc/passwd", "/proc/1/environ", "/proc/self/mem", "/", str(state), state / "identity.json"):
            assert await it.refused("open", str(path), read) == "EACCES", path
        assert await it.refused("open", str(state / "lock"), os.O_RDWR) == "EACCES"
        for folder, name in ((state / "artifacts", "there.wasm"), (state / "aot", "there.so")):
            assert await it.refused("open", str(folder / name), read) == ""
            for flags in (write, os.O_RDWR, read | os.O_TRUNC, write | os.O_APPEND):
                assert await it.refused("open", str(folder / name), flags) == "EACCES"
            assert await it.refused("open", str(folder / "new"), write | os.O_CREAT) == "EACCES"
            assert await it.refused("rename", str(folder / name), str(state / "db" / "x")) in ("EACCES", "EXDEV")
            assert await it.refused("rename", str(state / "db" / "skerry.db"), str(folder / name)) in (
                "EACCES",
                "EXDEV",
            )
            assert (folder / name).stat().st_size == 4
        assert await it.refused("open", "/tmp/skerry-fence-was-here", write | os.O_CREAT) == "EACCES"
        assert await it.refused("symlink", "/etc/passwd", str(state / "db" / "x")) == "EPERM"
        assert await it.refused("link", str(state / "aot" / "there.so"), str(state / "db" / "x")) == "EPERM"
        # Said in the docs: the database is its to write.
        assert await it.refused("open", str(state / "db" / "skerry.db"), os.O_RDWR) == ""
        assert await it.refused("open", "/dev/urandom", read) == ""


async def test_a_compiler_writes_code_alone(victim: Any) -> None:
    async with victim("compiler") as it:
        assert await it.refused("open", str(it.state / "artifacts" / "there.wasm"), os.O_RDONLY) == ""
        for path in ("artifacts/there.wasm", "artifacts/new", "db/skerry.db", "db/new", "new"):
            assert await it.refused("open", str(it.state / path), os.O_WRONLY | os.O_CREAT) == "EACCES", path
        assert await it.refused("open", str(it.state / "aot" / "new"), os.O_WRONLY | os.O_CREAT) == ""
        assert await it.refused("open", "/etc/passwd", os.O_RDONLY) == "EACCES"
        assert await it.refused("thread") == ""
        assert await it.refused("fork") != ""


async def test_a_repeater_reads_artifacts_alone(victim: Any) -> None:
    async with victim("repeater") as it:
        assert await it.refused("open", str(it.state / "artifacts" / "there.wasm"), os.O_RDONLY) == ""
        for path in ("artifacts/there.wasm", "artifacts/new", "aot/new", "temp/new", "db/skerry.db", "db/new", "new"):
            assert await it.refused("open", str(it.state / path), os.O_WRONLY | os.O_CREAT) == "EACCES", path
        for path in ("aot/there.so", "db/skerry.db", "identity.json"):
            assert await it.refused("open", str(it.state / path), os.O_RDONLY) in ("EACCES", "ENOENT"), path
        assert await it.refused("open", "/etc/passwd", os.O_RDONLY) == "EACCES"
        assert await it.refused("thread") in ("EPERM", "EAGAIN")
        assert await it.refused("fork") != ""


async def test_what_is_compiled_writes_to_a_folder_of_its_own(victim: Any) -> None:
    """Before it is parsed: a module that takes the compiler over gives no other function its code."""
    async with victim("compiler") as it:
        own = it.state / "aot" / "own"
        await it.ask("go_on")
        artifact = it.state / "artifacts" / "there.wasm"
        sha256 = hashlib.sha256(artifact.read_bytes()).hexdigest()
        await it.child.ask(frames.COMPILE, frames.Compile(str(artifact), sha256, str(own), 0), 60)
        assert await it.refused("open", str(own / "new"), os.O_WRONLY | os.O_CREAT) == ""
        assert await it.refused("open", "/proc/cpuinfo", os.O_RDONLY) == ""
        assert await it.refused("open", str(it.state / "aot" / "more"), os.O_WRONLY | os.O_CREAT) == "EACCES"
        for path in ("aot/there.so", "artifacts/there.wasm"):
            for flags in (os.O_RDONLY, os.O_WRONLY):
                assert await it.refused("open", str(it.state / path), flags) == "EACCES", path
        assert await it.refused("rename", str(own / "new"), str(it.state / "aot" / "there.so")) in ("EACCES", "EXDEV")
        assert await it.refused("connect", *NETWORK[0]) == "SIGSYS"
        shutil.rmtree(own)


NETWORK = [
    (socket.AF_INET, ["127.0.0.1", 9]),
    (socket.AF_INET6, ["::1", 9]),
    (socket.AF_UNIX, "/run/systemd/journal/socket"),
]


@pytest.mark.parametrize("kind", CHILD_KINDS)
@pytest.mark.parametrize(
    "what",
    [
        *(("connect", family, address) for family, address in NETWORK),
        ("shell", "/bin/sh"),
        ("raw", 322, -100, "/bin/sh", 0, 0, 0),
        ("signal", 1),
        ("raw", 101, 16, 1, 0, 0),
        ("raw", 310, 1, 0, 0, 0, 0, 0),
        ("raw", 425, 8, 0),
        ("raw", 272, 0x1000_0000),
    ],
    ids=["tcp", "tcp6", "unix", "execve", "execveat", "pidfd", "ptrace", "process_vm_readv", "io_uring", "unshare"],
)
@pytest.mark.parametrize("place", USERS[:1], indirect=True)
async def test_what_ends_it(victim: Any, kind: ProcessKind, what: tuple[Any, ...]) -> None:
    """No honest child ever asks for these: the log shows signal 31."""
    async with victim(kind) as it:
        assert await it.refused(*what) == "SIGSYS"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("what", [("interrupt",), ("raw", 0x4000_0027)], ids=["i386", "x32"])
@pytest.mark.parametrize("place", USERS[:1], indirect=True)
async def test_a_call_by_another_architectures_numbers_ends_all_threads(victim: Any, what: tuple[Any, ...]) -> None:
    """libsql's thread would keep the socket, the locks and the memory."""
    async with victim() as it:
        assert await it.refused("raw", 39) == "", "getpid, by the number that it has here"
        assert len(os.listdir(f"/proc/{it.child.pid}/task")) > 1
        assert await asyncio.wait_for(it.refused(*what), scaled(10)) == "SIGSYS"


async def test_processes(victim: Any) -> None:
    async with victim() as it:
        for what in (("spawn", "/bin/sh"), ("fork",), ("thread",)):
            assert await it.refused(*what) in ("EPERM", "EAGAIN"), what
    async with victim() as it:
        assert await it.refused("connect", *NETWORK[0]) == "SIGSYS"
    async with victim() as it:
        assert await it.refused("shell", "/bin/sh") == "SIGSYS"


async def test_signals(victim: Any) -> None:
    """It ends no other process, by whatever way, and outlives no front."""
    async with victim() as it:
        for pid in (os.getpid(), it.processes.pid, -1, 0):
            for number in (signal.SIGKILL, signal.SIGTERM, 0):
                assert await it.refused("kill", pid, number) == "EPERM"
        assert await it.refused("raw", 234, os.getpid(), os.getpid(), 9) == "EPERM", "tgkill"
        assert await it.refused("owner", it.child.sock.fileno(), os.getpid()) == "EPERM", "a signal with input"
        assert await it.refused("raw", 157, 1, 0) == "EPERM", "PR_SET_PDEATHSIG"
        assert await it.refused("kill", it.child.pid, signal.SIGTERM) == "", "itself"
    async with victim("compiler") as it:
        assert await it.refused("raw", 157, 1, 0) == "EPERM", "PR_SET_PDEATHSIG"
        for request in (0x8901, 0x8902, 0x5452):
            assert await it.refused("raw", 16, 0, request, 0) == "EPERM", "a signal with input, by ioctl"


LIVES = """
import sys
from edge_runtime.sandbox import fence
fence.die_with_parent(int(sys.argv[1]))
print("it lives")
"""


@pytest.mark.parametrize(("parent", "said"), [(os.getpid, b"it lives\n"), (os.getppid, b"")], ids=["there", "gone"])
async def test_a_child_whose_parent_ended_before_it_could_be_bound_to_it_ends(parent: Any, said: bytes) -> None:
    """The kernel tells only of an end that comes later."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LIVES, str(parent()), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await asyncio.wait_for(process.communicate(), scaled(60))
    assert (told, process.returncode) == (said, 0 if said else 1)


async def test_limits(victim: Any) -> None:
    async with victim() as it:
        # Without a reserve: else the kernel itself refuses more than the machine has.
        anonymous = mmap.MAP_ANONYMOUS | 0x4000
        assert await it.refused("take", 100 * GIB, mmap.MAP_PRIVATE | anonymous) == "ENOMEM"
        assert await it.refused("take", 100 * GIB, mmap.MAP_SHARED | anonymous) == "EPERM"
        assert await it.refused("take", 3 * GIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) == "", "a guest's memory"
        assert await it.refused("raw", 302, 0, 2, it.child.pid, 0) == "EPERM", "prlimit64 that sets"
        assert await it.refused("raw", 302, os.getpid(), 2, 0, 0) == "EPERM", "another's"
        assert await it.refused("take", 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) == ""
        status = Path(f"/proc/{it.child.pid}/status").read_text()
        values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert (values["NoNewPrivs"], values["Seccomp"]) == ("1", "2")
        assert int(values["CapEff"], 16) & ~0b1011 == int(values["CapPrm"], 16) & ~0b1011 == 0
        assert Path(f"/proc/{it.child.pid}/oom_score_adj").read_bytes().strip() == fence.OOM_SCORE
        limits = Path(f"/proc/{it.child.pid}/limits").read_text()
        assert "Max address space         unlimited            unlimited" in limits, "under a limit guests get out"
        for line in limits.splitlines():
            if line.startswith(("Max core file", "Max processes")):
                assert line.split()[-3:-1] == ["0", "0"] or line.split()[-2:] == ["0", "0"], line


async def test_descriptors(victim: Any) -> None:
    """It has its socket, the database and the lock of the state directory, which is not its to let go."""
    async with victim() as it:
        assert await it.refused("open", "/dev/urandom", os.O_RDONLY) == "", "it is fenced by now"
        links = [os.readlink(f"/proc/{it.child.pid}/fd/{name}") for name in os.listdir(f"/proc/{it.child.pid}/fd")]
        names = {link.split(":")[0].removeprefix(str(it.state)) for link in links}
        assert {name for name in names if not name.startswith("/db/")} == {
            "/dev/null", "/lock", "pipe", "socket", "anon_inode",
        }  # fmt: skip
        assert not [link for link in links if "pidfd" in link or "memfd" in link]
        for _ in range(2):
            assert await it.refused("unlock", str(it.state / "lock")) == "EPERM"
        assert await it.refused("hand_on") == "EPERM"
        assert await it.refused("raw", 46, it.child.sock.fileno(), 0, 0) == "EPERM", "sendmsg"
        assert await it.refused("unlock", str(it.state / "db" / "writer.lock")) == ""


async def test_what_it_prints_is_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async with place.another() as own, own.victim() as it:
        assert await it.refused("write", 2, "one \x1b[31m\ntw") == ""
        assert await it.refused("write", 1, "o\nthree") == ""
        assert await it.refused("raw", 77, 2, 0) == "EINVAL", "ftruncate: it isn't a file"
    assert [entry.message for entry in caplog.records if entry.name == "skerry.child"] == [
        "one \\x1b[31m", "two", "three",
    ]  # fmt: skip


async def test_fault_points_work_within_the_fence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="skerry-fence-") as folder:
        os.chmod(folder, 0o777)
        monkeypatch.setenv("SKERRY_FAULTS", folder)
        async with place.another() as own, own.victim() as it:
            Path(folder, "here").write_text("kill")
            assert await it.refused("reach", "here") == "SIGKILL"
            assert Path(folder, "here.held").read_text() == f"{it.child.pid}\n"


LACKING = """
import logging, sys
from pathlib import Path
from edge_runtime.sandbox import libseccomp
from edge_runtime import front
from edge_runtime.cli.run import _told
from edge_runtime.settings import EdgeSettings
logging.basicConfig(level=logging.INFO)
without = libseccomp.Filter(libseccomp.ALLOW)
without.add([libseccomp.Rule(sys.argv[1], action=libseccomp.fail(38))])
without.load()
with _told():
    front.run(EdgeSettings(state=Path(sys.argv[2]), listen="127.0.0.1:0", workers=1, fence=sys.argv[3]))
"""
"""A node on a kernel that lacks a system call."""


@contextlib.asynccontextmanager
async def on_a_kernel_without(call: str, state: Path, fenced: str) -> AsyncIterator[asyncio.StreamReader]:
    """Its log."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LACKING, call, str(state), fenced, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with deadline(90):
            yield process.stderr
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


PIECES = [("landlock_create_ruleset", "Landlock"), ("seccomp", "seccomp")]


@pytest.mark.parametrize(("call", "piece"), PIECES)
async def test_a_kernel_that_lacks_a_piece_is_refused(tmp_path: Path, call: str, piece: str) -> None:
    async with on_a_kernel_without(call, tmp_path, "required") as log:
        told = (await log.read()).decode()
        assert "serving on" not in told
        last = told.strip().splitlines()[-1]
        assert "this machine can't fence in what runs functions. " + piece in last
        assert "SKERRY_EDGE_FENCE=partial" in last


@pytest.mark.parametrize(("call", "piece"), PIECES)
async def test_or_taken_where_one_is_told_to(tmp_path: Path, call: str, piece: str) -> None:
    async with on_a_kernel_without(call, tmp_path, "partial") as log:
        lines: list[str] = []
        while not lines or "serving on" not in lines[-1]:
            line = (await log.readline()).decode()
            assert line, lines
            lines.append(line)
        warned = [line for line in lines if "functions run without a part of their fence" in line]
        assert [piece in line for line in warned] == [True]
        port = int(lines[-1].split()[-1])
        workers: dict[str, Any] = {"pids": []}
        while not workers["pids"]:
            async with aiohttp.request("GET", f"http://127.0.0.1:{port}/_skerry/status") as answer:
                workers = (await answer.json())["workers"]
        assert [told.split(":")[0] for told in workers["unfenced"]] == [piece]
        status = Path(f"/proc/{workers['pids'][0]}/status").read_text()
        assert ("Seccomp_filters:\t2" in status) == (piece != "seccomp"), "the rest of the fence is there"
