"""`just demo-fleet` in small: each release goes as it must, and nothing is left of it, also after Ctrl-C."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.deadlines import scaled
from tests.support.environment import without_settings

ROOT = Path(__file__).parents[3]
LIMIT = 400.0
"""Seconds for all of it on a busy machine."""


class DemoRun:
    """A running demo, and what it has said."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "scripts.demo_fleet", "--nodes", "9"],
                cwd=ROOT,
                env=without_settings(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.family: set[psutil.Process] = set()

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


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoRun]:
    made = DemoRun(tmp_path / "demo.log")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.mark.timeout(int(LIMIT * 8))
def test_each_release_goes_as_it_must(demo: DemoRun) -> None:
    demo.wait("everything has ended")
    assert demo.process.wait(scaled(60)) == 0, demo.output
    lines = demo.output.splitlines()
    assert re.search(r"2 +a change .* stopped in its rehearsal +0 of 12 +edge-2, row visits id=2", demo.output), lines
    assert re.search(r"3 +price@2.* stopped at step 1 of 2 +1 of 12 +p99 of price", demo.output), lines
    assert re.search(r"5 +price@3 +done +12 of 12 +control was killed \d+ times", demo.output), lines
    assert demo.gone()


def test_ctrl_c_ends_everything(demo: DemoRun) -> None:
    demo.wait("nodes join")
    assert len(demo.family) > 5
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(scaled(60)) == 130, demo.output
    assert "Traceback" not in demo.output
    assert demo.gone()
