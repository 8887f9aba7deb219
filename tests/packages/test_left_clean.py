"""A bare machine leaves nothing mounted, no process and no folder, in whatever way the tests that use it end."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packages.machine import FOLDER, ROOT
from tests.support.deadlines import scaled

PROGRAM = """
import sys, time
from pathlib import Path
from tests.packages import machine
with machine.running(Path(sys.argv[1])) as there:
    there.start(["sh", "-c", "trap '' TERM HUP INT; while :; do sleep 0.1; done"], sys.stderr.buffer)
    there.run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    print(there.number, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_machine(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "base.tar").symlink_to(FOLDER / "base.tar")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        number = process.stdout.readline().strip()
        assert number
        assert Path("/proc", number).exists()
        process.send_signal(how)
        # It removes a whole Debian.
        process.wait(scaled(120))
    wait_until(lambda: not (tmp_path / "machine").exists())
    # The one that removed the folder is about to end, and so are those that started it.
    wait_until(lambda: not Path("/proc", number).exists())
    wait_until(lambda: processes_below(tmp_path) == [])
    assert str(tmp_path) not in Path("/proc/mounts").read_text("utf-8")


def processes_below(folder: Path) -> list[str]:
    """Return the command lines of processes that name the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def wait_until(true: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + scaled(within)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
