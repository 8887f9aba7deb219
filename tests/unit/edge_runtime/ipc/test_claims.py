"""Where a worker and the front want the same call, one of them gets it, always."""

import os
import signal
import subprocess
import sys
import time

from edge_runtime.ipc import progress_page
from edge_runtime.ipc.claims import CLAIMS, ROOM, Claims
from tests.support.deadlines import scaled

SLOT = 3


def opened() -> tuple[int, Claims]:
    descriptor = progress_page.create()
    claims = Claims(progress_page.open_page(descriptor), SLOT)
    claims.clear()
    return descriptor, claims


def test_an_offer_is_taken_once() -> None:
    _, claims = opened()
    assert not claims.take(7)
    claims.offer(7)
    assert not claims.take(8)
    assert claims.take(7)
    assert not claims.take(7)


def test_neighbours_share_no_claim() -> None:
    assert ROOM < CLAIMS
    _, claims = opened()
    for first in range(1, ROOM + 2):
        claims.offer(first)
    assert all(claims.take(request) for request in range(1, ROOM + 2))


def test_a_new_worker_finds_nothing_of_the_one_before() -> None:
    _, claims = opened()
    for request in range(CLAIMS):
        claims.offer(request)
    claims.clear()
    assert not any(claims.take(request) for request in range(CLAIMS))


def test_claims_leave_the_marks_alone_and_those_of_other_slots() -> None:
    words = progress_page.open_page(progress_page.create())
    marks = [progress_page.Mark(words, slot) for slot in (SLOT - 1, SLOT, SLOT + 1)]
    for number, mark in enumerate(marks):
        mark.start(number + 1)
    before = [progress_page.read(words, slot) for slot in (SLOT - 1, SLOT, SLOT + 1)]
    claims, beside = Claims(words, SLOT), Claims(words, SLOT + 1)
    claims.clear()
    for request in range(CLAIMS):
        claims.offer(request)
    assert [progress_page.read(words, slot) for slot in (SLOT - 1, SLOT, SLOT + 1)] == before
    assert not any(beside.take(request) for request in range(CLAIMS))


_WORKER = """
import sys
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.claims import Claims
claims = Claims(progress_page.open_slot(int(sys.argv[1]), int(sys.argv[2])), 0)
source = sys.stdin.buffer
got = []
while line := source.readline():
    # A batch of offered ids, in their order, as a worker comes to them.
    for request in line.split():
        if claims.take(int(request)):
            got.append(request)
    sys.stdout.buffer.write(b" ".join(got) + b"\\n")
    sys.stdout.buffer.flush()
    got.clear()
"""


def test_two_processes_never_own_one_call() -> None:
    """The front takes calls back from the end, the worker takes them from the start: each is owned by one of them."""
    descriptor, claims = opened()
    command = [sys.executable, "-c", _WORKER, str(descriptor), str(SLOT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(descriptor,)) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        last, met, moment = 0, 0, 1e-4
        deadline = time.monotonic() + scaled(60)
        # Until they met often enough in the middle of a batch.
        while met < 40 and time.monotonic() < deadline:
            batch = range(last + 1, last + 33)
            last = batch[-1]
            for request in batch:
                claims.offer(request)
            worker.stdin.write(b" ".join(b"%d" % request for request in batch) + b"\n")
            worker.stdin.flush()
            # Longer where the worker came too late, shorter where it was done: the moment in which they meet is soon
            # found, and left again, so that they meet everywhere.
            until = time.perf_counter() + moment
            while time.perf_counter() < until:
                pass
            ours = {request for request in reversed(batch) if claims.take(request)}
            theirs = {int(request) for request in worker.stdout.readline().split()}
            assert not ours & theirs
            assert ours | theirs == set(batch)
            met += bool(ours and theirs)
            moment = min(moment * 1.2, 1e-3) if len(ours) > len(theirs) else moment / 1.2
        assert met >= 20, (met, last)
        worker.stdin.close()
        assert worker.wait(scaled(60)) == 0


def test_a_worker_killed_at_any_moment_leaves_no_claim_behind() -> None:
    descriptor, claims = opened()
    command = [sys.executable, "-c", _WORKER.replace("int(request)", "int(request) + 0"), str(descriptor), str(SLOT)]
    for _ in range(3):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(descriptor,)) as worker:
            assert worker.stdin is not None
            for request in range(1, 33):
                claims.offer(request)
            worker.stdin.write(b" ".join(b"%d" % request for request in range(1, 33)) + b"\n")
            worker.stdin.flush()
            os.kill(worker.pid, signal.SIGKILL)
        claims.clear()
        claims.offer(5)
        assert [request for request in range(CLAIMS) if claims.take(request)] == [5]
