"""Deadlines of tests are as much longer as the machine is slower, at the start of a process and while it runs."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import deadlines
from tests.support.deadlines import deadline, scaled, slower

ROOT = Path(__file__).parents[3]
MEASURED = """
import os, sys, time
from tests.support.deadlines import Slowness

os.sched_setaffinity(0, {int(sys.argv[1])})
slowness, ends = Slowness(), time.monotonic() + 60
while slowness.factor() < 1.5 and time.monotonic() < ends:
    pass
print(slowness.factor())
"""
PROJECT = """
import pytest, time
from tests.support import deadlines, limit_of_a_test

def pytest_configure(config):
    config.pluginmanager.register(limit_of_a_test)

@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(deadlines, "scaled", lambda seconds: 1000 * seconds)
"""
TESTS = """
import time

def test_on_a_slow_machine(slow):
    time.sleep(0.5)

def test_on_a_quiet_machine():
    time.sleep(60)
"""


class Machine:
    """One that is as slow as a test says."""

    def __init__(self) -> None:
        self.slower = 1.0

    def factor(self) -> float:
        return self.slower


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(deadlines, "_slowness", made)
    return made


@pytest.mark.parametrize(
    ("ran", "waited", "factor"),
    [(1.0, 0.0, 1.0), (1.0, 1.5, 1.0), (1.0, 4.0, 2.0), (0.1, 0.9, 4.0), (0.1, 9.9, 8.0), (0.0, 1.0, 8.0), (0, 0, 1.0)],
)
def test_the_factor_is_what_it_took_by_what_it_takes_usually(ran: float, waited: float, factor: float) -> None:
    assert slower(ran, waited) == factor


def test_a_process_that_shares_its_core_with_many_knows_by_how_much() -> None:
    core = str(min(os.sched_getaffinity(0)))
    busy = [subprocess.Popen(["taskset", "-c", core, sys.executable, "-ISc", "while True: pass"]) for _ in range(6)]
    try:
        ran = subprocess.run(
            [sys.executable, "-c", MEASURED, core], cwd=ROOT, capture_output=True, text=True, check=True
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert 1.5 <= float(ran.stdout) <= deadlines.MOST


async def test_a_deadline_passes(machine: Machine) -> None:
    with pytest.raises(TimeoutError):
        async with deadline(0.01):
            await asyncio.Event().wait()
    async with deadline(60):
        await asyncio.sleep(0)
    assert scaled(60) == 60


async def test_a_deadline_is_moved_where_the_machine_becomes_slow(machine: Machine) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with deadline(0.05):
        machine.slower = 1000.0
        while loop.time() < began + 0.2:
            await asyncio.sleep(0.01)
    assert scaled(60) == 60_000


def test_pytests_own_limit_is_moved_too(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PROJECT)
    (tmp_path / "test_a.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p pytest_timeout\ntimeout = 0.3\n")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "test_a.py"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "Timeout (>0.3s)" in ran.stdout
    assert ran.stdout.rstrip().splitlines()[-1].startswith("1 failed, 1 passed")
