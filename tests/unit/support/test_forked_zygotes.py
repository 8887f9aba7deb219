"""Zygotes that are forked from a template are what a start by exec makes, and are used nowhere else."""

import asyncio
import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.ipc import frames, zygote_client
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.state import State
from tests.support import forked_zygotes
from tests.support.edge import until

BY_EXEC = b"\0-m\0edge_runtime.children.zygote\0"
# As a run of tests that is killed: it says the ids of the template and of the zygote, and stays.
PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.support import forked_zygotes
from tests.unit.support.test_forked_zygotes import zygote

async def main():
    async with zygote(Path(sys.argv[1])) as processes:
        print(Path(f"/proc/{processes.pid}/stat").read_text().split()[3], processes.pid, flush=True)
        await asyncio.sleep(600)

with forked_zygotes.used():
    asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _own_template() -> Iterator[None]:
    """A template that is started now: what the tests before changed in this process is no matter."""
    with forked_zygotes.used():
        yield


@contextlib.asynccontextmanager
async def zygote(folder: Path) -> AsyncIterator[ZygoteClient]:
    """A zygote that is up; it is gone at the end of the block."""
    with State(folder, 5.0) as state:
        processes = ZygoteClient(frames.ChildSettings(str(state.path), "NORMAL"), state.lock)
        running = asyncio.ensure_future(processes.run())
        try:
            await asyncio.wait_for(processes._up.wait(), 60)
            pid = processes.pid
            yield processes
            pid = processes.pid or pid
        finally:
            running.cancel()
            await asyncio.wait([running])
        assert not Path(f"/proc/{pid}").exists()


def looks(pid: int) -> dict[str, Any]:
    """What the kernel tells of a process that nothing but its start decides."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    same = ("Umask", "Uid", "Gid", "Groups", "Threads", "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Seccomp")
    links = [os.readlink(each) for each in (process / "fd").iterdir()]
    return {
        **{name: value for name, value in status.items() if name in same or name.startswith("Cap")},
        "limits": (process / "limits").read_text(),
        "files": sorted(re.sub(r":\[\d+]$", "", link) for link in links),
        "libraries": sorted(set(re.findall(r"/\S+\.so\S*", (process / "maps").read_text()))),
        "folder": os.readlink(process / "cwd"),
        "group": os.getpgid(pid) - pid,
        "priority": (os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)),
    }


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_fork_is_as_what_exec_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with zygote(tmp_path / "state"):
        # The template is there, in another folder.
        monkeypatch.chdir(tmp_path)
    async with zygote(tmp_path / "state") as forked:
        assert BY_EXEC not in command_line(forked.pid)
        of_fork = looks(forked.pid)
    monkeypatch.setattr(zygote_client, "subprocess", subprocess)
    async with zygote(tmp_path / "state") as started:
        assert BY_EXEC in command_line(started.pid)
        assert looks(started.pid) == of_fork


@pytest.mark.parametrize("other", ["environment", "limits", "program"])
async def test_where_a_fork_would_be_something_else_it_is_exec(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The template has to be there, with the limits of all tests.
    async with zygote(tmp_path / "state") as processes:
        assert BY_EXEC not in command_line(processes.pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if other == "environment":
        monkeypatch.setenv("SKERRY_FAULTS", str(tmp_path))
    elif other == "program":
        monkeypatch.setattr(ZygoteClient, "PROGRAM", "tests.support.failing_forks")
    else:
        resource.setrlimit(resource.RLIMIT_STACK, (4 * 2**20, hard))
    try:
        async with zygote(tmp_path / "state") as processes:
            words = command_line(processes.pid)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    assert b"\0-m\0" + ZygoteClient.PROGRAM.encode() + b"\0" in words


async def test_a_template_that_was_killed_is_replaced(tmp_path: Path) -> None:
    async with zygote(tmp_path / "state") as processes:
        first = processes.pid
        template = int(Path(f"/proc/{first}/stat").read_text().split()[3])
        os.kill(template, signal.SIGKILL)
        await until(lambda: processes.zygotes == 2 and processes._up.is_set())
        assert not Path(f"/proc/{first}").exists()
        assert BY_EXEC not in command_line(processes.pid)


async def test_nothing_is_left_of_a_run_that_is_killed(tmp_path: Path) -> None:
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(tmp_path / "state"), stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert run.stdout is not None
    try:
        pids = [int(word) for word in (await asyncio.wait_for(run.stdout.readline(), 60)).split()]
        assert len(pids) == 2
    finally:
        run.kill()
        await run.wait()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
