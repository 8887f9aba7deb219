"""A demo of `scripts` that runs as a program, what it says, and the processes that it has started."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.deadlines import scaled
from tests.support.environment import without_settings

ROOT = Path(__file__).parents[2]
LIMIT = 400.0
"""Seconds for all of it on a busy machine."""


class DemoRun:
    """A running demo, and what it has said."""

    def __init__(self, process: psutil.Popen, log: Path) -> None:
        self.process = process
        self.family: set[psutil.Process] = set()
        self._log = log

    @classmethod
    @contextmanager
    def of(cls, module: str, *arguments: str, log: Path) -> Iterator["DemoRun"]:
        """Run a module until the block ends."""
        with log.open("wb") as output:
            process = psutil.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=without_settings(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield cls(process, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text("utf-8")

    def wait(self, text: str) -> None:
        """Wait until it says that, or ends; and see its processes meanwhile."""
        end = time.monotonic() + scaled(LIMIT)
        while text not in self.output and self.process.poll() is None:
            assert time.monotonic() < end, self.output
            self.family |= set(self.process.children(recursive=True))
            time.sleep(0.1)

    def gone(self) -> bool:
        """Whether no process of it is left."""
        _, alive = psutil.wait_procs(self.family, timeout=scaled(30))
        return not alive
