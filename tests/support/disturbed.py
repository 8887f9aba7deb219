"""The side of `just disturb` (tests/support/disturb.py) that is in each process of pytest's.

Tasks and threads start or go on late, the database and the store answer late, and what fails is written down.
"""

import asyncio
import concurrent.futures.thread
import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.flaked_runs import TAIL, Logs
from tests.support.services import ServerUrls

SEED = "SKERRY_TEST_DISTURBANCE"
"""A text that repeats a run of `just disturb`, as far as clocks do."""
FOLDER = "SKERRY_TEST_DISTURBED"
"""Where `just disturb` and the processes of pytest's meet; unset elsewhere."""
SHARE = 0.005
"""Of the steps of tasks, and of what threads are given."""
LONGEST = 0.3


def join(config: pytest.Config) -> None:
    """Take part in this process of pytest's, where `just disturb` is what runs it."""
    if FOLDER not in os.environ:
        return
    folder = Path(os.environ[FOLDER])
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    chance = random.Random(f"{os.environ[SEED]} {worker}")
    _note_stops(folder)
    _delay_tasks(chance)
    _delay_threads(chance)
    config.pluginmanager.register(Logs())
    config.pluginmanager.register(_Order())
    if not worker:
        config.pluginmanager.register(_Failures(folder))


@contextmanager
def late(services: ServerUrls) -> Iterator[ServerUrls]:
    """Yield the same servers, behind proxies that are late at times, where `just disturb` runs the tests."""
    if FOLDER not in os.environ:
        yield services
        return
    with _proxy(services.metadata_url) as metadata, _proxy(services.artifacts_url) as artifacts:
        yield replace(services, metadata_url=metadata, artifacts_url=artifacts)


def stop_note(folder: Path, pid: int) -> Path:
    """Return the file that is there while a test has this process stopped; ProcessLookupError where there is none."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        raise ProcessLookupError from None
    return folder / f"stopped-{pid}-{began}"


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Have no one else stop or continue a process; after a second regardless, for who has the turn may be stopped."""
    with (folder / "turn").open("a") as lock:
        ends = time.monotonic() + 1
        while time.monotonic() < ends:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.002)
        try:
            yield
        finally:
            # A process that was forked meanwhile has the file open, too.
            fcntl.flock(lock, fcntl.LOCK_UN)


def _note_stops(folder: Path) -> None:
    """Have known which processes a test has stopped: they are the test's to continue."""
    real = os.kill

    def kill(pid: int, number: int, /) -> None:
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            real(pid, number)
            return
        with turn(folder):
            note = stop_note(folder, pid)
            if number == signal.SIGSTOP:
                note.touch()
            else:
                note.unlink(missing_ok=True)
            real(pid, number)

    os.kill = kill


def _delay_tasks(chance: random.Random) -> None:
    """Have a step of a task now and then come later than what else the loop has to do; uvloop's are left alone."""
    real = asyncio.Handle._run  # type: ignore[attr-defined]

    def run(handle: Any) -> None:
        task = getattr(handle._callback, "__self__", None)
        if isinstance(task, asyncio.Task) and chance.random() < SHARE and not handle._loop.is_closed():
            handle._loop.call_later(_delay(chance), go_on, handle)
        else:
            real(handle)

    def go_on(handle: Any) -> None:
        if not handle.cancelled():
            real(handle)

    asyncio.Handle._run = run  # type: ignore[attr-defined]


def _delay_threads(chance: random.Random) -> None:
    """Have a thread, or what a pool of threads is given, now and then begin late."""
    for kind in (threading.Thread, concurrent.futures.thread._WorkItem):
        kind.run = _begun_late(kind.run, chance)  # type: ignore[method-assign]


def _begun_late(real: Any, chance: random.Random) -> Any:
    def run(*arguments: Any) -> None:
        if chance.random() < SHARE * 10:
            time.sleep(_delay(chance))
        real(*arguments)

    return run


def _delay(chance: random.Random) -> float:
    """Seconds: mostly few."""
    return LONGEST * chance.random() ** 3


@contextmanager
def _proxy(url: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.support.late_proxy", url, os.environ[SEED]]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            yield running.stdout.readline().strip()
        finally:
            running.stdin.close()
            running.wait(60)


class _Order:
    """Files in an order of the seed's: what a short run gets to isn't always the same."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files: dict[Path, list[pytest.Item]] = {}
        for item in items:
            files.setdefault(item.path, []).append(item)
        order = sorted(files)
        random.Random(os.environ[SEED]).shuffle(order)
        items[:] = [item for path in order for item in files[path]]


class _Failures:
    """Writes a line for each failure."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "failures"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            shown = [report.longreprtext, *(f"-- {title}, its end\n{text[-TAIL:]}" for title, text in report.sections)]
            with self._path.open("a") as lines:
                lines.write(json.dumps([report.nodeid, "\n".join(shown)]) + "\n")
