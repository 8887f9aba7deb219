"""`just disturb`: which processes it stops, that they go on, and what it tells."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import disturb, disturbed
from tests.support.deadlines import scaled

ROOT = Path(__file__).parents[3]
PARENT = "import subprocess, sys; subprocess.run(['sleep', '60'])"
HELD = """
import random, sys
from pathlib import Path
from tests.support import disturb

disturb.LONGEST = 3.0
while True:
    disturb.stop_one(int(sys.argv[1]), random.Random(1), Path(sys.argv[2]))
"""
TESTS = """
def test_a():
    pass

def test_b(tmp_path):
    (tmp_path / "node.log").write_text("the node's last line")
    with open(__file__ + ".ran", "a") as ran:
        ran.write(".")
    assert not "it is late"
"""
CONFTEST = """
from tests.support import disturbed

def pytest_configure(config):
    disturbed.join(config)
"""


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until that is true."""
    ends = time.monotonic() + scaled(seconds)
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


class Pair:
    """A process and its child; the child is what may be stopped."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen([sys.executable, "-c", PARENT])
        until(lambda: self._children() != [])
        [self.child] = self._children()

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.parent.pid).children()

    @property
    def stopped(self) -> bool:
        return self.child.status() == psutil.STATUS_STOPPED


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.child.kill()
    made.parent.wait()


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test stops by `os.kill` is known to be stopped by a test."""
    monkeypatch.setattr(os, "kill", os.kill)
    disturbed._note_stops(tmp_path)


def stopping(pair: Pair, folder: Path) -> threading.Thread:
    thread = threading.Thread(target=disturb.stop_one, args=(pair.parent.pid, random.Random(1), folder))
    thread.start()
    return thread


def test_a_process_is_stopped_for_a_moment(pair: Pair, tmp_path: Path) -> None:
    thread = stopping(pair, tmp_path)
    until(lambda: pair.stopped)
    assert psutil.Process(pair.parent.pid).status() != psutil.STATUS_STOPPED
    thread.join()
    until(lambda: not pair.stopped)


def test_what_a_test_has_stopped_stays_so(
    pair: Pair, tmp_path: Path, noted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(pair.child.pid, signal.SIGSTOP)
    until(lambda: pair.stopped)
    disturb.stop_one(pair.parent.pid, random.Random(1), tmp_path)
    assert pair.stopped
    os.kill(pair.child.pid, signal.SIGCONT)
    until(lambda: not pair.stopped)
    # Stopped by both: the test's stop holds when the other has ended.
    thread = stopping(pair, tmp_path)
    until(lambda: pair.stopped)
    os.kill(pair.child.pid, signal.SIGSTOP)
    thread.join()
    assert pair.stopped
    os.kill(pair.child.pid, signal.SIGCONT)
    until(lambda: not pair.stopped)


def test_what_is_stopped_goes_on_where_who_stopped_it_is_killed(pair: Pair, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HELD, str(pair.parent.pid), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as holder:
        until(lambda: pair.stopped)
        os.killpg(holder.pid, signal.SIGKILL)
    until(lambda: not pair.stopped)


def test_it_tells_what_failed_and_how_often(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_a.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p pytest_timeout -p xdist.plugin\n")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "SKERRY_TEST_DISTURBANCE": "7"}
    words = [str(tmp_path / "test_a.py"), f"--rootdir={tmp_path}", f"--config-file={tmp_path / 'pytest.ini'}"]
    command = [sys.executable, "-m", "tests.support.disturb", "10", *words]
    ran = tmp_path / "test_a.py.ran"
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as running:
        until(lambda: ran.exists() and len(ran.read_text()) > 1, 120)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=scaled(120))
    lines = out.rstrip().splitlines()
    assert running.returncode == 1, lines
    assert lines[0] == "SKERRY_TEST_DISTURBANCE=7 repeats this, as far as clocks do"
    assert lines[-2] == "1 tests failed"
    times, _, name = lines[-1].partition(" x ")
    assert name.endswith("test_a.py::test_b")
    assert int(times) >= len(ran.read_text()) - 1 > 0
    assert any(line.endswith(f"test_a.py::test_b: {times} times") for line in lines)
    assert "the node's last line" in lines
