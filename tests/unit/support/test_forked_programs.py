"""Programs that are forked from a template are what a start by exec makes, and nothing else is forked."""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from control.local.process import ending_with_us
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.state import State
from tests.support import forked_programs
from tests.support.deadlines import scaled
from tests.support.edge import until
from tests.support.failing_calls import FailingCalls
from tests.support.forked_programs import Programs

ROOT = Path(__file__).parents[3]
MODULE = "edge_runtime.cli.main"
SAYS = forked_programs.may_be_forked(
    """
import json, os, signal, sys
json.dump({
    "argv": sys.argv, "orig": sys.orig_argv, "path": sys.path,
    "main": sorted(each for each in vars(sys.modules["__main__"]) if each[:2] != "__"),
    "name": __name__, "environment": dict(os.environ), "folder": os.getcwd(), "parent": os.getppid(),
    "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(), "umask": os.umask(0),
    "handlers": {n: str(signal.getsignal(n)) for n in signal.valid_signals()},
    "buffered": (sys.stdout.line_buffering, sys.stdout.write_through, sys.stderr.line_buffering),
    "encoding": (sys.stdin.encoding, sys.stdout.encoding, sys.stderr.encoding, sys.stderr.errors),
    "bytecode": sys.dont_write_bytecode, "given": sys.stdin.read(),
}, sys.stdout, indent=1)
"""
)
"""Says what a program sees of its start, except what of it comes before all code."""
WAITS = forked_programs.may_be_forked("import sys, time\nprint('up', flush=True)\ntime.sleep(600)\n")
ENDS = forked_programs.may_be_forked("import sys\nexec(sys.argv[1])\n")
STARTS = forked_programs.may_be_forked(
    """
import subprocess, sys
print(subprocess.run([sys.executable, "-m", "edge_runtime.cli.main", "--version"], stdout=-1).stdout, flush=True)
other = subprocess.Popen([sys.executable, "-m", "edge_runtime.cli.main", "logs", "--state", sys.argv[1], "-f"])
print(other.pid, flush=True)
other.wait()
""",
    starts_others=True,
)
RUN = """
import subprocess, sys, time
from control.local.process import ending_with_us
from tests.support import forked_programs
from tests.unit.support.test_forked_programs import WAITS
with forked_programs.used() as programs:
    # Of the template of zygotes, which is made in a fifth of the time.
    forked_programs.MODULES[""] = "zygotes"
    other = subprocess.Popen(ending_with_us([sys.executable, '-c', WAITS]), stdout=subprocess.PIPE)
    other.stdout.readline()
    print(*programs.template_pids, other.pid, flush=True)
    time.sleep(600)
"""
"""As a run of tests that is killed, with a program that is to end with it."""


@pytest.fixture(autouse=True, scope="module")
def programs() -> Iterator[Programs]:
    """Templates that are started now: what the tests before changed in this process is no matter."""
    with forked_programs.used() as used:
        yield used


def is_fork(pid: int) -> bool:
    """Whether the process is a fork of a template: it has loaded what the program itself doesn't import."""
    return "_cffi_backend" in Path(f"/proc/{pid}/maps").read_text()


def looks(pid: int) -> dict[str, Any]:
    """What the kernel tells of a process that nothing but its start decides."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    same = (
        "Name",
        "Umask",
        "PPid",
        "Uid",
        "Gid",
        "Groups",
        "Threads",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "NoNewPrivs",
        "Seccomp",
    )
    # The library that reads lines for pytest sets these two for what exec starts, past `os.environ`.
    variables = (process / "environ").read_bytes().split(b"\0")
    links = [os.readlink(each) for each in (process / "fd").iterdir()]
    return {
        **{name: value for name, value in status.items() if name in same or name.startswith("Cap")},
        "limits": (process / "limits").read_text(),
        "files": sorted(re.sub(r":\[\d+]$", "", link) for link in links),
        "numbers": sorted(int(each.name) for each in (process / "fd").iterdir()),
        "folder": os.readlink(process / "cwd"),
        "program": os.readlink(process / "exe"),
        "words": (process / "cmdline").read_bytes(),
        "environment": sorted(each for each in variables if not each.startswith((b"LINES=", b"COLUMNS="))),
        "group": os.getpgid(pid) == pid,
        "session": os.getsid(pid) == pid,
        "priority": (os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid)),
    }


@contextlib.contextmanager
def waiting(*, by_exec: bool, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forked_programs, "by_exec", by_exec)
        process = subprocess.Popen([sys.executable, "-c", WAITS, "a word"], stdout=subprocess.PIPE, **more)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


PURE = {name: value for name, value in os.environ.items() if name == "SKERRY_EDGE_PURE"}
"""Without it, where the tests have it, a program is none that a fork could be."""
STARTED: dict[str, dict[str, Any]] = {
    "plainly": {},
    "in a session": {"start_new_session": True, "cwd": "/"},
    "in a group": {"process_group": 0, "umask": 0o027},
    "with an environment": {"env": {"PATH": "/bin", "A": "é", "TZ": "Asia/Tokyo", "PYTHONUNBUFFERED": "1", **PURE}},
    "with nothing": {"env": PURE, "stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
}


@pytest.mark.parametrize("how", STARTED)
def test_the_kernel_tells_the_same_of_a_fork(how: str) -> None:
    more, read = STARTED[how], os.open("/dev/zero", os.O_RDONLY)
    try:
        with waiting(by_exec=False, pass_fds=[read], **more) as forked:
            assert is_fork(forked.pid)
            of_fork = looks(forked.pid)
        with waiting(by_exec=True, pass_fds=[read], **more) as started:
            assert not is_fork(started.pid)
            assert looks(started.pid) == of_fork
    finally:
        os.close(read)


@pytest.mark.parametrize("how", STARTED)
@pytest.mark.parametrize("flags", [(), ("-P",)])
def test_a_program_sees_the_same(how: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, *flags, "-c", SAYS, "a", "b c"]
    given: dict[str, Any] = {"input": "words", "text": True, "capture_output": True, "timeout": 60}
    more = {name: value for name, value in STARTED[how].items() if name not in ("stdin", "stderr")}
    forked = subprocess.run(command, **given, **more)
    monkeypatch.setattr(forked_programs, "by_exec", True)
    started = subprocess.run(command, **given, **more)
    assert (forked.returncode, forked.stderr) == (0, "")
    of_fork, of_exec = json.loads(forked.stdout), json.loads(started.stdout)
    # The first one is set by Python for a program in the locale C.
    for name in ("LC_CTYPE", "LINES", "COLUMNS"):
        for told in (of_exec, of_fork):
            told["environment"].pop(name, None)
    assert of_exec == of_fork


@pytest.mark.parametrize("arguments", [("--version",), ("nothing",), ("call", "none.wasm")])
def test_a_command_ends_and_says_the_same(
    tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran() -> tuple[int, bytes, bytes]:
        command = [sys.executable, "-m", MODULE, *arguments]
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True)
        return done.returncode, done.stdout, done.stderr

    forked = ran()
    monkeypatch.setattr(forked_programs, "by_exec", True)
    assert ran() == forked


@pytest.mark.parametrize(
    "code",
    [
        "",
        "sys.exit(3)",
        "sys.exit(259)",
        "sys.exit('words')",
        "import os; os._exit(7)",
        "1 / 0",
        "raise KeyboardInterrupt",
        "import os; os.kill(os.getpid(), 15)",
        "import atexit; atexit.register(print, 'last'); print('first')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
        "class A:\n def __del__(self): print('gone')\na = A()",
    ],
)
def test_a_program_ends_the_same(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran() -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, "-c", ENDS, code], capture_output=True, text=True, timeout=scaled(60))
        # Python shows lines of a program's text only where it has started that itself.
        said = re.sub(r"(?m)^    .*\n", "", done.stderr)
        return done.returncode, done.stdout, said

    forked = ran()
    monkeypatch.setattr(forked_programs, "by_exec", True)
    assert ran() == forked


async def test_it_is_the_child_of_who_starts_it_and_can_be_waited_for() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WAITS, stdout=pipe)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    assert is_fork(process.pid)
    process.send_signal(signal.SIGINT)
    assert await process.wait() == -signal.SIGINT


def test_signals_for_the_whole_group_end_the_programs_and_not_the_template(programs: Programs) -> None:
    for _ in range(2):
        with waiting(by_exec=False) as process:
            assert is_fork(process.pid)
            for pid in programs.template_pids:
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)
            process.terminate()
            assert process.wait(scaled(60)) == -signal.SIGTERM


def test_nothing_is_left_of_a_run_that_is_killed() -> None:
    """Neither the template nor a program that is to end with the run, as `control.local.process` starts it."""
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, cwd=ROOT) as run:
        try:
            assert run.stdout is not None
            template, program = [int(word) for word in run.stdout.readline().split()]
            assert is_fork(program)
            assert psutil.pid_exists(template)
        finally:
            run.kill()
    _gone([template, program])


def _gone(pids: list[int]) -> None:
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=scaled(60))
    assert alive == []


def test_programs_of_a_fork_are_forked_too_and_are_its_children(tmp_path: Path) -> None:
    State(tmp_path / "state", 5.0).__enter__().__exit__(None, None, None)
    command = ending_with_us([sys.executable, "-c", STARTS, str(tmp_path / "state")])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert b"skerry-edge" in process.stdout.readline()
            other = int(process.stdout.readline())
            assert psutil.Process(other).ppid() == process.pid
            assert is_fork(other)
            family = [each.pid for each in psutil.Process(process.pid).children()]
        finally:
            process.kill()
    _gone([pid for pid in family if pid != other])
    with contextlib.suppress(ProcessLookupError):
        os.kill(other, signal.SIGKILL)


@pytest.mark.parametrize("other", ["environment", "limits", "program", "flags", "modules"])
def test_where_a_fork_would_be_something_else_it_is_exec(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with waiting(by_exec=False) as process:
        assert is_fork(process.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    more: dict[str, Any] = {}
    if other == "environment":
        monkeypatch.setenv("PYTHONDEVMODE", "1")
    elif other == "modules":
        (tmp_path / "control").mkdir()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    elif other == "program":
        monkeypatch.setattr(forked_programs, "_codes", {})
    elif other == "flags":
        more["restore_signals"] = False
    else:
        resource.setrlimit(resource.RLIMIT_STACK, (4 * 2**20, hard))
    try:
        with waiting(by_exec=False, **more) as process:
            assert not is_fork(process.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def test_programs_with_a_preloaded_library_are_forked_from_one_that_has_it(tmp_path: Path) -> None:
    failing = FailingCalls(tmp_path / "rules")
    library = failing.environment["LD_PRELOAD"]
    for environment, loaded in ((failing.environment, True), ({}, False)):
        with waiting(by_exec=False, env={**os.environ, **environment}) as process:
            assert is_fork(process.pid)
            assert (library in Path(f"/proc/{process.pid}/maps").read_text()) == loaded
    # None of ours.
    with waiting(by_exec=False, env={**os.environ, "LD_PRELOAD": "libc.so.6"}) as process:
        assert not is_fork(process.pid)


def test_a_folder_that_is_not_there_is_said_as_ever(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        subprocess.run([sys.executable, "-m", MODULE, "--version"], cwd=tmp_path / "nowhere")


def test_a_template_that_was_killed_is_replaced(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    # That of zygotes, which is made in a fifth of the time.
    monkeypatch.setitem(forked_programs.MODULES, "", "zygotes")
    with waiting(by_exec=False) as process:
        assert is_fork(process.pid)
    os.kill(programs._templates["zygotes", ""].pid, signal.SIGKILL)
    with waiting(by_exec=False) as process:
        assert not is_fork(process.pid)
    with waiting(by_exec=False) as process:
        assert is_fork(process.pid)


@contextlib.asynccontextmanager
async def zygote(folder: Path) -> AsyncIterator[ZygoteClient]:
    """A zygote that is up; it is gone at the end of the block."""
    with State(folder, 5.0) as state:
        processes = ZygoteClient(frames.ChildSettings(str(state.path), "NORMAL"), state.lock)
        running = asyncio.ensure_future(processes.run())
        try:
            await asyncio.wait_for(processes._up.wait(), scaled(60))
            pid = processes.pid
            yield processes
        finally:
            running.cancel()
            await asyncio.wait([running])
        await until(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_forked_zygote_is_as_one_that_exec_starts(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def libraries(pid: int) -> set[str]:
        return set(re.findall(r"/\S+\.so\S*", Path(f"/proc/{pid}/maps").read_text()))

    def told(pid: int) -> dict[str, Any]:
        # Numbers of descriptors are other ones each time, and are in the command line.
        seen = looks(pid)
        return {name: seen[name] for name in seen.keys() - {"numbers", "words"}} | {"libraries": libraries(pid)}

    before = programs.forked
    async with zygote(tmp_path / "state") as forked:
        assert programs.forked == before + 1
        of_fork = told(forked.pid)
    monkeypatch.setattr(forked_programs, "by_exec", True)
    async with zygote(tmp_path / "state") as started:
        assert told(started.pid) == of_fork


def test_a_test_leaves_a_signal_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def test_the_next_one_finds_it_as_before() -> None:
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
