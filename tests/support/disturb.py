"""Run tests again and again while what they run on is held up: `python -m tests.support.disturb MINUTES [WORD…]`.

Processes of the tests are stopped for a moment, one after the other; tests/support/disturbed.py has what is late within
them. Words are pytest's. Ends with status 1 where a test failed, and lists those.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.disturbed import FOLDER, SEED, stop_note, turn

LONGEST = 0.8
"""Seconds for which a process is stopped, at most."""
PAUSE = 0.5
"""Seconds between two of that, at most."""
WORDS = ("tests/acceptance", "tests/integration", "tests/console", "--numprocesses=5", "--dist=loadfile")
ENDS = (0, 1, 2)
"""Statuses of pytest's: tests passed, tests failed, it was interrupted."""
ROOT = Path(__file__).parents[2]


def main(minutes: float, words: list[str]) -> int:
    """Disturb tests for that time; return the status."""
    seed = os.environ.get(SEED) or str(random.SystemRandom().randrange(1_000_000))
    print(f"{SEED}={seed} repeats this, as far as clocks do", flush=True)
    chance = random.Random(seed)
    ends = time.monotonic() + 60 * minutes
    broken = rounds = 0
    with tempfile.TemporaryDirectory(prefix="skerry-disturb-") as name:
        folder = Path(name)
        try:
            while time.monotonic() < ends and not broken:
                rounds += 1
                broken = _round(words or list(WORDS), f"{seed}.{rounds}", folder, chance, ends)
        except KeyboardInterrupt:
            pass
        return report(folder) or broken


def _round(words: list[str], seed: str, folder: Path, chance: random.Random, ends: float) -> int:
    """Run the tests once, or until the time ends; return pytest's status where it isn't one of tests."""
    command = [sys.executable, "-m", "pytest", "--quiet", "--no-loadscope-reorder", *words]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, SEED: seed, FOLDER: str(folder)}) as run:
        try:
            while run.poll() is None and time.monotonic() < ends:
                stop_one(run.pid, chance, folder)
                time.sleep(chance.uniform(0, PAUSE))
        finally:
            if run.poll() is None:
                run.send_signal(signal.SIGINT)
                try:
                    run.wait(120)
                except subprocess.TimeoutExpired:
                    run.kill()
    return 0 if run.returncode in ENDS else run.returncode


def stop_one(above: int, chance: random.Random, folder: Path) -> None:
    """Stop one of the processes below a process for a moment, if no one else has stopped it."""
    found = sorted(process.pid for process in psutil.Process(above).children(recursive=True))
    if not found:
        return
    pid, seconds = chance.choice(found), chance.uniform(0, LONGEST)
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        note = stop_note(folder, pid)
        with turn(folder):
            # Its number may be another's by now, and what is stopped already isn't ours to continue.
            if note.exists() or _state(pid) in "Tt" or not _descends(pid, above):
                return
            waker = _wake_after(seconds, process, note, folder)
            signal.pidfd_send_signal(process, signal.SIGSTOP)
            until = time.monotonic() + 0.05
            while _state(pid) not in "TtZX" and time.monotonic() < until:
                time.sleep(0.001)
        os.waitpid(waker, 0)
    except (ProcessLookupError, psutil.NoSuchProcess):
        pass
    finally:
        os.close(process)


def _wake_after(seconds: float, process: int, note: Path, folder: Path) -> int:
    """Start a process that continues that one, whatever happens to this one and its group; return its id."""
    reading, writing = os.pipe()
    waker = os.fork()
    if not waker:
        try:
            os.setsid()
            os.write(writing, b".")
            time.sleep(seconds)
            with turn(folder):
                # A test has stopped it meanwhile: it goes on when the test says so.
                if not note.exists():
                    signal.pidfd_send_signal(process, signal.SIGCONT)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as ready:
        # Until then it would end with the group.
        ready.read(1)
    return waker


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _descends(pid: int, above: int) -> bool:
    return above in [process.pid for process in psutil.Process(pid).parents()]


def report(folder: Path) -> int:
    """Print what failed, how often, and the end of what was told of it; return the status."""
    path = folder / "failures"
    failures: dict[str, list[str]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, told = json.loads(line)
        failures.setdefault(name, []).append(told)
    for name, told in failures.items():
        print(f"\n== {name}: {len(told)} times\n{told[-1][-6000:]}")
    print(f"\n{len(failures)} tests failed", *(f"{len(told)} x {name}" for name, told in failures.items()), sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
