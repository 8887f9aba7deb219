"""A bare Debian 13 that packages are installed in, and where their programs run: real files, users and processes.

It is the root that `scripts/bare-root` made, in namespaces of its own for mounts and processes; machine.sh has how. Its
network is this machine's, so tests use 127.0.0.1 and free ports there. There is no systemd that runs: units are checked
by systemd's own program, and run by tests.packages.units.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.support.deadlines import scaled

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".skerry" / "bare-root"
NAMES = ("control.example.org",)
"""What docs/how-to calls control; leads to 127.0.0.1."""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
OPTIONS = ("Dir::Cache::archives=/var/cache/skerry-archives", "APT::Sandbox::User=root", "Acquire::Retries=5")
APT = ("apt-get", "-q", "-y", "--no-install-recommends", *(f"-o{option}" for option in OPTIONS))
"""apt-get, which keeps what it has got for the next run. Root gets it, to whom the folder for it belongs."""


class Machine:
    """A machine that runs.

    `number` is that of its first process, as the outer world has it; what `start` starts is added to `started`.
    """

    def __init__(self, number: str, started: list[subprocess.Popen[bytes]]) -> None:
        self.number = number
        self.started = started

    def command(self, *command: str, **environment: str) -> list[str]:
        """Return the command, to be run by the outer world, that runs `command` as the machine's root."""
        variables = [f"{name}={value}" for name, value in {**ENVIRONMENT, **environment}.items()]
        inside = ["nsenter", "--target", self.number, "--mount", "--pid", "env", "-i", "--chdir=/root"]
        return [*as_root(), *inside, *variables, *command]

    def attempt(self, *command: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the machine as its root, whatever its status; its input is empty."""
        outer = self.command(*command, **environment)
        return subprocess.run(
            outer, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout
        )

    def run(self, *command: str, timeout: float = 120, **environment: str) -> str:
        """Run a command of the machine as its root, and return what it printed.

        Raises:
            AssertionError: Its status isn't 0; says what it printed.
        """
        done = self.attempt(*command, timeout=timeout, **environment)
        assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, script: str, *, timeout: float = 120, **environment: str) -> str:
        """Run lines of a shell as root, up to the first that fails; as `run` otherwise."""
        return self.run("sh", "-euc", script, timeout=timeout, **environment)

    def start(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command of the machine's root that goes on running; a signal to what is returned isn't passed on."""
        outer = self.command(*command)
        process = subprocess.Popen(outer, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.started.append(process)
        return process

    def write(self, path: str, text: str) -> None:
        """Write a file's text. A file that is there keeps its owner and its mode."""
        self.shell('printf %s "$TEXT" >"$FILE"', TEXT=text, FILE=path)

    def put(self, source: Path, path: str) -> None:
        """Copy a file of the outer world into the machine."""
        with source.open("rb") as stream:
            subprocess.run(self.command("sh", "-c", f"cat >'{path}'"), stdin=stream, check=True, timeout=scaled(120))

    def apt(self, *arguments: str) -> str:
        """Run apt-get, which asks nothing, and return what it said."""
        return self.run(*APT, *arguments, timeout=500)

    def exists(self, path: str) -> bool:
        return self.attempt("test", "-e", path).returncode == 0

    def stat(self, path: str) -> str:
        """Return a file's owner, group and mode, as `root skerry 640`."""
        return self.run("stat", "--format=%U %G %a", path).strip()


def enabled(machine: Machine) -> list[str]:
    """Return the links by which systemd would start units of Skerry's."""
    return machine.run("find", "/etc/systemd/system", "-type", "l", "-name", "*skerry*").splitlines()


def as_root() -> list[str]:
    """Return what a command begins with that has to be root's."""
    return [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]


@contextmanager
def running(folder: Path = FOLDER) -> Iterator[Machine]:
    """A machine with nothing installed. Its apt knows of no package before `apt-get update`.

    Raises:
        RuntimeError: It couldn't be made; says which part is missing.
    """
    if not (folder / "base.tar").exists():
        raise RuntimeError(f"{folder}/base.tar isn't there: `just test-packages` has scripts/bare-root make it")
    if missing := [name for name in ("unshare", "nsenter", "flock") if shutil.which(name) is None]:
        raise RuntimeError(f"these programs are missing, of Debian's package util-linux: {' '.join(missing)}")
    script = [*as_root(), "bash", str(Path(__file__).with_name("machine.sh")), str(folder), *NAMES]
    # A session of its own: at Ctrl-C it ends as its input does, and clears up behind it.
    process = subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    started: list[subprocess.Popen[bytes]] = []
    try:
        number = process.stdout.readline().strip()
        if not number:
            raise RuntimeError(f"the bare machine didn't start: {process.stderr.read().strip()}")
        yield Machine(number, started)
    finally:
        process.stdin.close()
        for one in (process, *started):
            one.wait(scaled(60))
        process.stdout.close()
        process.stderr.close()
