"""The servers that the worker processes of a run share: started for the first that asks, ended with the run."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil

from tests.support import shared_services
from tests.support.deadlines import scaled
from tests.support.shared_services import SharedServices

ROOT = Path(__file__).parents[4]
LIMIT = 60.0
STARTER = """
import sys
from tests.support.shared_services import SharedServices
shared = SharedServices()
print(shared.socket, shared.process.pid, flush=True)
sys.stdin.read()
"""


def names(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        # PostgreSQL's own process for a connection ends some time after it was closed.
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(process.name())
    return found


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, scaled(LIMIT))[1]


async def test_all_who_ask_are_told_of_the_same_and_a_kill_of_the_starter_ends_them() -> None:
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        try:
            assert starter.stdout is not None
            path, pid = starter.stdout.readline().split()
            first, second = shared_services.ask(path), shared_services.ask(path)
            assert first == second
            connection = await asyncpg.connect(first["postgresql_url"])
            await connection.close()
            holder = psutil.Process(int(pid))
            servers = holder.children(recursive=True)
            assert {"postgres", "weed"} <= names(servers)
        finally:
            starter.send_signal(signal.SIGKILL)
    assert ended([holder, *servers])
    assert not Path(path).parent.exists()


def test_where_nobody_asks_nothing_is_started() -> None:
    shared = SharedServices()
    holder = psutil.Process(shared.process.pid)
    # It has come as far as to wait: its own imports are done.
    deadline = time.monotonic() + scaled(LIMIT)
    while holder.status() != psutil.STATUS_SLEEPING or not holder.cpu_times().user:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert holder.children() == []
    assert not any("asyncpg" in mapped.path for mapped in holder.memory_maps())
    shared.end()
    assert ended([holder])
    assert not Path(shared.socket).parent.exists()
