"""The ring keeps lines on the disk, within its bounds, whatever becomes of the disk, the files and the process."""

import contextlib
import errno
import logging
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from control.protocol.counts import counted
from edge_runtime.telemetry import records, ring, search
from edge_runtime.telemetry.search import LineFilter
from tests.support.deadlines import scaled

MIB = 1 << 20
DAY = 86_400.0


def line(n: int, pad: int = 100, at: float | None = None) -> bytes:
    moment = records.time_text(time.time() if at is None else at)
    return records.encode({"t": moment, "kind": "log", "n": n, "message": "x" * pad})


def kept(folder: Path) -> list[int]:
    """The numbers of the lines that are there."""
    return [r["n"] for r in map(orjson.loads, search.search(folder, LineFilter(), 10_000).lines) if "n" in r]


def told(folder: Path) -> list[str]:
    return [orjson.loads(one)["message"] for one in search.search(folder, LineFilter(kinds=("node",)), 10_000).lines]


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + scaled(seconds)
    while not condition():
        assert time.monotonic() < end, "it didn't come to that"
        time.sleep(0.01)


@pytest.fixture
def soon(monkeypatch) -> None:
    monkeypatch.setattr(ring, "RETRY", 0.02)
    monkeypatch.setattr(ring, "TOLD", 0.0)


@contextlib.contextmanager
def opened(folder: Path, limit: int = MIB, age: float = DAY) -> Iterator[ring.Ring]:
    made = ring.Ring(folder, limit, age, "n1")
    made.start()
    try:
        yield made
    finally:
        made.close()


def test_lines_are_there_after_the_end_and_for_the_owner_alone(tmp_path) -> None:
    folder = tmp_path / "telemetry"
    with opened(folder) as made:
        for n in range(50):
            made.put(line(n))
    assert kept(folder) == list(range(50))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}


def test_a_folder_that_others_may_read_is_closed(tmp_path) -> None:
    tmp_path.chmod(0o755)
    with opened(tmp_path) as made:
        made.put(line(1))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_it_goes_on_after_a_restart(tmp_path) -> None:
    for n in range(40):
        with opened(tmp_path) as made:
            made.put(line(n))
    assert kept(tmp_path) == list(range(40))
    assert len(ring.numbers(tmp_path)) == 1


def test_the_oldest_go_and_it_never_has_more_bytes(tmp_path) -> None:
    limit = 16 * 10_000
    with opened(tmp_path, limit) as made:
        for n in range(5000):
            made.put(line(n))
            if n % 100 == 0:
                until(made.mark())
                assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= limit
    found = kept(tmp_path)
    assert found == list(range(found[0], 5000))
    size = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert limit * 14 / 16 <= size <= limit


def test_a_smaller_limit_holds_for_what_is_there(tmp_path) -> None:
    with opened(tmp_path, 64 * 10_000) as made:
        for n in range(4000):
            made.put(line(n))
    with opened(tmp_path, 16 * 10_000) as made:
        made.put(line(4000))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 16 * 10_000
    assert kept(tmp_path)[-1] == 4000


def test_what_is_too_old_goes_without_newer_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ring, "LOOK", 0.05)
    with opened(tmp_path) as made:
        made.put(line(1))
        until(lambda: kept(tmp_path) == [1])
        # From here on: on a busy machine it would be gone before it is seen.
        made._files._age = 0.5
        until(lambda: kept(tmp_path) == [])
        made._files._age = DAY
        made.put(line(2))
        until(lambda: kept(tmp_path) == [2])


def test_old_lines_go_while_newer_ones_come(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ring, "LOOK", 0.05)
    with opened(tmp_path, age=2.0) as made:
        n = 0
        end = time.monotonic() + scaled(60)
        while 0 in kept(tmp_path) or n < 20:
            assert time.monotonic() < end
            made.put(line(n))
            n += 1
            time.sleep(0.05)
        # On a busy machine the last one could be too old before the end.
        made._files._age = DAY
        made.put(line(n))
    assert kept(tmp_path)[-1] == n


def test_more_than_may_wait_is_dropped_and_said(tmp_path, soon, caplog) -> None:
    caplog.set_level(logging.WARNING)
    made = ring.Ring(tmp_path, 16 * MIB, DAY, "n1")
    for n in range(200):
        made.put(line(n, 10_000))
    dropped = made.dropped
    assert 80 < dropped < 110
    made.start()
    until(lambda: told(tmp_path))
    made.close()
    text = f"dropped of the node's records, which couldn't be written in time: {counted(dropped, 'line')}"
    assert told(tmp_path) == [text]
    assert text in caplog.text
    assert kept(tmp_path) == list(range(200 - dropped))


def test_a_line_without_a_time_is_no_line(tmp_path, soon) -> None:
    with opened(tmp_path) as made:
        made.put(b"foreign\n")
        made.put(line(1))
        until(lambda: told(tmp_path))
    assert (kept(tmp_path), made.lost) == ([1], 1)


@pytest.mark.parametrize("what", ["cut", "emptied", "removed", "replaced", "folder removed", "folder moved"])
def test_files_may_be_lost_beside_it(tmp_path, soon, what) -> None:
    folder = tmp_path / "a"
    with opened(folder) as made:
        made.put(line(1))
        until(lambda: kept(folder) == [1])
        path = ring.path_of(folder, 1)
        match what:
            case "cut":
                os.truncate(path, 30)
            case "emptied":
                os.truncate(path, 0)
            case "removed":
                path.unlink()
            case "replaced":
                path.unlink()
                path.mkdir()
            case "folder removed":
                shutil.rmtree(folder)
            case _:
                folder.rename(tmp_path / "b")
        made.put(line(2))
        until(lambda: 2 in (kept(folder) if what != "replaced" else kept_beside(folder)))
        made.put(line(3))
        until(lambda: 3 in (kept(folder) if what != "replaced" else kept_beside(folder)))
        assert made.trouble == ""


def kept_beside(folder: Path) -> list[int]:
    """The lines that are in files, where one of the names is a folder's."""
    files = [p for p in folder.glob("*.ndjson") if p.is_file()]
    return [orjson.loads(one)["n"] for p in files for one in p.read_bytes().splitlines() if b'"n"' in one]


@pytest.mark.parametrize("what", ["a file", "a dangling link"])
def test_a_folder_that_cannot_be_is_told_until_it_can(tmp_path, soon, caplog, what) -> None:
    folder = tmp_path / "a"
    if what == "a file":
        folder.write_text("")
    else:
        folder.symlink_to(tmp_path / "nowhere" / "b")
    caplog.set_level(logging.WARNING)
    with opened(folder) as made:
        made.put(line(1))
        until(lambda: made.trouble)
        assert made.lost == 1
        assert "the node's records can't be written" in caplog.text
        folder.unlink()
        until(lambda: not made.trouble)
        made.put(line(2))
    assert kept(folder) == [2]
    assert any(text.endswith("in time: 1 line") and "node's records" in text for text in told(folder))


def test_a_folder_that_it_may_not_write_is_told(tmp_path, soon) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        with opened(tmp_path / "a") as made:
            made.put(line(1))
            until(lambda: made.trouble)
            tmp_path.chmod(0o700)
            until(lambda: not made.trouble)
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_tears_one_line_and_the_rest_is_found(tmp_path, soon, monkeypatch) -> None:
    """As the kernel does it: a part of what fits is written, and then nothing."""
    real, room = os.write, [10**9]

    def write(descriptor: int, data: bytes) -> int:
        if not os.readlink(f"/proc/self/fd/{descriptor}").endswith(".ndjson"):
            return real(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(descriptor, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    with opened(tmp_path) as made:
        for n in range(10):
            made.put(line(n))
        # Not once the lines are there: `write` has yet to count them then.
        until(made.mark())
        assert len(kept(tmp_path)) == 10
        room[0] = 500
        for n in range(10, 20):
            made.put(line(n))
        until(made.mark())
        until(lambda: made.trouble)
        assert made.trouble == "No space left on device"
        whole = kept(tmp_path)
        assert 10 < len(whole) < 20
        assert made.lost == 20 - len(whole)
        room[0] = 10**9
        until(lambda: not made.trouble)
        made.put(line(20))
    assert kept(tmp_path) == [*whole, 20]
    assert any(f"{20 - len(whole)} lines" in text for text in told(tmp_path))


def test_a_limit_of_the_kernel_on_files_is_survived(tmp_path) -> None:
    """The real thing: the kernel writes a part of a line, and refuses the rest."""
    code = """
import resource, sys, time
from pathlib import Path
from edge_runtime.telemetry import records, ring
ring.RETRY, ring.TOLD = 0.02, 0.0
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
made = ring.Ring(Path(sys.argv[1]), 1 << 20, 1e9)
made.start()
for n in range(100):
    made.put(records.encode({"t": records.time_text(time.time()), "n": n, "message": "x" * 100}))
while not made.trouble:
    time.sleep(0.01)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
while made.trouble:
    time.sleep(0.01)
made.put(records.encode({"t": records.time_text(time.time()), "n": 100}))
made.close()
print(made.lost)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=scaled(60)
    )
    assert ran.returncode == 0, ran.stderr
    found = kept(tmp_path)
    assert found[:-1] == list(range(100 - int(ran.stdout)))
    assert found[-1] == 100


def test_two_processes_never_write_it_at_once(tmp_path, soon) -> None:
    with opened(tmp_path) as first:
        first.put(line(1))
        until(lambda: kept(tmp_path) == [1])
        with opened(tmp_path) as second:
            second.put(line(2))
            until(lambda: second.trouble)
            assert second.trouble == "another process writes there"
            first.put(line(3))
            until(lambda: kept(tmp_path) == [1, 3])
            first.close()
            until(lambda: not second.trouble)
            second.put(line(4))
            until(lambda: kept(tmp_path) == [1, 3, 4])


def test_kills_lose_the_last_moment_alone(tmp_path) -> None:
    """A run says which line is written, time and again: these are there after kill -9, and no line is torn or twice."""
    code = """
import sys, time
from pathlib import Path
from edge_runtime.telemetry import records, ring
made, n = ring.Ring(Path(sys.argv[1]), 1 << 24, 1e9), int(sys.argv[2])
made.start()
while True:
    n += 1
    made.put(records.encode({"t": records.time_text(time.time()), "n": n, "message": "x" * 150}))
    time.sleep(0.001)
    if made._done == made._put:
        print(n, flush=True)
"""
    n = 0
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            said = child.stdout.readline()
            time.sleep(random.random() * 0.3)
            child.kill()
            said = child.stdout.read().rpartition(b"\n")[0].rpartition(b"\n")[2] or said
        found = kept(tmp_path)
        assert int(said) in found
        assert found == sorted(set(found))
        n = found[-1] + 1000
    # Torn by hand: a kill lands within a write only now and then.
    path = ring.path_of(tmp_path, ring.numbers(tmp_path)[-1])
    before = kept(tmp_path)
    with path.open("ab") as file:
        file.write(line(10**6)[:40])
    with opened(tmp_path) as made:
        made.put(line(10**6 + 1))
    assert kept(tmp_path) == [*before, 10**6 + 1]


def test_a_clock_that_is_set_back_begins_another_file(tmp_path) -> None:
    now = time.time()
    with opened(tmp_path) as made:
        for n, at in enumerate((now, now - 3, now + 1, now - 100, now - 99, now + 5)):
            made.put(line(n, at=at))
    assert kept(tmp_path) == list(range(6))
    assert len(ring.numbers(tmp_path)) == 2
    assert len(search.search(tmp_path, LineFilter(since=now - 50), 100).lines) == 4


def test_a_clock_that_is_set_back_again_and_again_makes_files_within_bounds(tmp_path) -> None:
    now = time.time()
    with opened(tmp_path) as made:
        for n in range(200):
            made.put(line(n, at=now - 10 * n))
        until(made.mark())
    assert 50 <= len(ring.numbers(tmp_path)) <= 65
    assert kept(tmp_path)[-1] == 199
