"""A disk with a file system, whose power can be cut: what was written and not flushed may be lost then."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.packages.machine import Machine, as_root
from tests.support.deadlines import scaled

SIZE = 512 << 20


class LossyDisk:
    """Mounted in a machine at `place`."""

    def __init__(self, machine: Machine, place: str, folder: Path) -> None:
        self.machine = machine
        self.place = place
        self._folder = folder
        self._image = folder / "image"
        self._image.touch()
        os.truncate(self._image, SIZE)
        _run("mke2fs", "-q", "-t", "ext4", str(self._image))
        (folder / "fuse").mkdir()
        self._loop = ""
        self._nbdfuse: subprocess.Popen[bytes]

    def mount(self) -> None:
        """Switch the power on, and mount the disk."""
        cut, server = self._folder / "cut", self._folder / "socket"
        for left in (cut, server):
            _run("rm", "-f", str(left))
        plugin = Path(__file__).with_name("lossy_plugin.py")
        _run("nbdkit", f"--unix={server}", "python", str(plugin), f"disk={self._image}", f"cut={cut}")
        command = [*as_root(), "nbdfuse", str(self._folder / "fuse"), "--unix", str(server)]
        self._nbdfuse = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        device = self._folder / "fuse" / "nbd"
        _wait(lambda: subprocess.run([*as_root(), "test", "-e", str(device)]).returncode == 0)
        self._loop = _run("losetup", "--find", "--show", str(device)).strip()
        found = re.fullmatch(r"/dev/loop(\d+)", self._loop)
        assert found
        self.machine.shell(f"test -e {self._loop} || mknod {self._loop} b 7 {found[1]}")
        self.machine.run("mount", "-t", "ext4", self._loop, self.place)

    def cut(self) -> None:
        """Cut the power. Who has files open there gets I/O errors from now on."""
        started = psutil.Process(self._nbdfuse.pid)
        # Where it is root's by sudo, it is a child of that.
        (server,) = [one for one in (started, *started.children(recursive=True)) if one.name() == "nbdfuse"]
        _run("kill", "-KILL", str(server.pid))
        self._nbdfuse.wait(scaled(60))
        cut = self._folder / "cut"
        _wait(lambda: cut.exists())

    def unmount(self) -> None:
        """After a cut: have the system forget the disk. Nobody has files open there any more."""
        _wait(lambda: self.machine.attempt("umount", self.place).returncode == 0)
        _run("losetup", "--detach", self._loop)
        gone = [*as_root(), "losetup", self._loop]
        _wait(lambda: subprocess.run(gone, capture_output=True).returncode != 0)
        _wait(lambda: subprocess.run([*as_root(), "umount", str(self._folder / "fuse")]).returncode == 0)

    def close(self) -> None:
        """Give all up, wherever it stands."""
        with contextlib.suppress(AssertionError, OSError):
            self.machine.attempt("umount", "--lazy", self.place)
            subprocess.run([*as_root(), "losetup", "--detach", self._loop], capture_output=True)
            subprocess.run([*as_root(), "umount", "--lazy", str(self._folder / "fuse")], capture_output=True)
            # It ends with its mount.
            self._nbdfuse.wait(scaled(60))


def _run(*command: str) -> str:
    ran = subprocess.run([*as_root(), *command], capture_output=True, text=True, timeout=scaled(60))
    assert ran.returncode == 0, f"{' '.join(command)}: {ran.stderr}"
    return ran.stdout


def _wait(true: Callable[[], bool], within: float = 30.0) -> None:
    deadline = time.monotonic() + scaled(within)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
