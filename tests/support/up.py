"""`skerry up` as a person runs it, and a shell beside it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from control.cli import main as cli
from control.cli.up.installation import Home
from control.local.process import ending_with_us
from tests.support.deadlines import scaled
from tests.support.environment import without_settings
from tests.support.ports import free_port
from tests.support.services import home_folder

ROOT = Path(__file__).resolve().parents[2]
READY = "Ctrl-C ends everything"
LIMIT = 120.0
"""Seconds for all its programs to start, each of which takes its time on a busy machine."""


class Up:
    """A `skerry up` with a home of its own, and what it says in a file beside that."""

    def __init__(self, home: Path, *arguments: str, log: str = "up.log", **environment: str) -> None:
        kept = without_settings()
        self.home = home
        self.environment = {**kept, "PYTHONPATH": str(ROOT), "SKERRY_HOME": str(home), **environment}
        self.log = home.with_name(log)
        with self.log.open("wb") as output:
            self.process = psutil.Popen(
                ending_with_us([sys.executable, "-m", "control.cli", "up", *arguments]),
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8")

    def wait_ready(self) -> None:
        """Wait until `skerry up` says that it is ready; fail with its output when it ends before."""
        began = time.monotonic()
        while READY not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < began + scaled(LIMIT), self.output
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        """Return the process and all its descendants."""
        found: list[psutil.Process] = [self.process, *self.process.children(recursive=True)]
        return found

    def end(self) -> None:
        """End `skerry up` with SIGINT, as Ctrl-C does, and kill what is left after 30 s."""
        if self.process.poll() is None:
            family = self.family()
            self.process.send_signal(signal.SIGINT)
            _, alive = psutil.wait_procs(family, timeout=scaled(30))
            for process in alive:
                process.kill()


def ready_up() -> Iterator[Up]:
    """Start a `skerry up` with a home of its own, wait until it serves, and end it with the fixture that uses this."""
    for home in make_home():
        running = Up(home)
        try:
            running.wait_ready()
            yield running
        finally:
            running.end()


def make_home(*, filled: bool = True) -> Iterator[Path]:
    """A home, as `home_folder` makes it, with ports of its own.

    PostgreSQL's own user can reach it, where we are root.
    """
    with home_folder(filled=filled) as folder:
        home = Home(folder)
        home.make()
        # Not the usual ports: two that start at a time would take them from each other.
        home.keep(control_port=free_port(), edge_port=free_port())
        yield home.folder


class Shell:
    """Runs commands as the person who started `skerry up` does."""

    def __init__(self, captured: pytest.CaptureFixture[str], logs: Path) -> None:
        self._captured = captured
        self._logs = logs
        self.out = self.err = ""

    def __call__(self, *arguments: str, ends: int = 0) -> str:
        status = cli.run(list(arguments))
        self.out, self.err = self._captured.readouterr()
        if status != ends:
            log = (self._logs / "control.log").read_text("utf-8", "replace")
            pytest.fail(f"{arguments} ended with {status}\n{self.out}\n{self.err}\n{log[-4000:]}", pytrace=False)
        return self.out

    def json(self, *arguments: str, ends: int = 0) -> Any:
        """Run a command with --json, and return its document."""
        return json.loads(self(*arguments, "--json", ends=ends))


def shell(up: Up, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Return a shell whose commands go to this `skerry up`; it changes this process's environment and folder."""
    for name in os.environ.keys() - without_settings().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("SKERRY_HOME", str(up.home))
    monkeypatch.chdir(ROOT)
    return Shell(capsys, up.home / "logs")
