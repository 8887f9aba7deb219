"""A bare Debian 13 with systemd as process 1, in namespaces of the running kernel: units run as they are written.

It is the machine of tests/packages, booted (boot.sh). A box is no virtual machine: it has this machine's kernel, clock
and network.
"""

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from tests.packages.machine import Machine, as_root
from tests.support.deadlines import scaled

GROUPS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
"""Where the second version's hierarchy of control groups may be."""


@contextmanager
def booted(bare: Machine, log: IO[bytes]) -> Iterator[Machine]:
    """Boot a machine on which systemd is installed, and return it as it is then; what it says goes to `log`."""
    bare.put(Path(__file__).with_name("boot.sh"), "/root/boot.sh")
    starting = bare.start(["sh", "/root/boot.sh", bare.number], log)
    try:
        box = Machine(str(_first_process(starting)), bare.started)
        _wait(lambda: box.attempt("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"))
        yield box
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(starting.pid).children(recursive=True):
                subprocess.run([*as_root(), "kill", "-KILL", str(process.pid)], capture_output=True)
        starting.wait(scaled(60))
        groups = [group for folder in GROUPS if (group := folder / f"skerry-box-{bare.number}").exists()]
        _wait(lambda: all(_removed(group) for group in groups))


def _removed(group: Path) -> bool:
    """Remove a control group, and return whether it is gone: its processes may be about to end."""
    command = [*as_root(), "find", str(group), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]
    subprocess.run(command, capture_output=True)
    return not group.exists()


def _first_process(starting: subprocess.Popen[bytes]) -> int:
    """The number of systemd's process in the outer world."""
    found: list[int] = []

    def there() -> bool:
        assert starting.poll() is None, "the box didn't boot: its log says why"
        for process in psutil.Process(starting.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name() == "systemd":
                    found.append(process.pid)
        return bool(found)

    _wait(there)
    return found[0]


def _wait(true: Callable[[], bool], within: float = 60.0) -> None:
    deadline = time.monotonic() + scaled(within)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
