"""When a running call is ended, by what the page says of it."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol.manifest import Manifest, SqlGrant
from edge_runtime import clock
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import CLIENT_GONE, LOCK_HELD, LOCK_WAIT, STUCK, TIME_LIMIT, Outcome
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.served_functions import ServedFunction, Tally
from edge_runtime.dispatch.time_watchdog import Watchdog, bound, overdue
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import frames, progress_page
from edge_runtime.pauses import Pauses
from tests.support.deadlines import deadline, scaled
from tests.support.pool_settings import pool_settings

LIMITS = pool_settings(1, lock_wait=10.0, lock_hold=2.0)
NOW = 1000.0


def call(limit_ms: int = 1000, gone: bool = False, grant: SqlGrant = "write") -> Call:
    made = Call("f", "GET", "", b"", [], "", b"", lambda outcome: None)
    function = frames.LocalFunction("f", 1, "", Manifest(time_limit_ms=limit_ms, sql=grant), "")
    made.served = ServedFunction(0, function, Tally("f"), Breaker(), True, limit_ms / 1000, 1)
    made.id = 7
    made.gone = gone
    return made


def seen(state: int, ran: float, waited: float = 0.0, in_state: float = 0.0, request: int = 7) -> progress_page.Seen:
    """A call that began `ran` seconds ago."""
    return progress_page.Seen(
        int((NOW - ran) * 1e9), int(waited * 1e9), int((NOW - in_state) * 1e9) if in_state else 0, state, request
    )


def why(
    made: Call, at: progress_page.Seen, since: float = NOW, others: bool = False, pauses: Pauses | None = None
) -> str:
    return overdue(made, at, since, NOW, others, LIMITS, pauses or Pauses())


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (seen(progress_page.RUNNING, 0.9), ""),
        (seen(progress_page.RUNNING, 1.1), TIME_LIMIT),
        # It waited 5 s for the lock and ran for 0.5 s.
        (seen(progress_page.WRITING, 5.5, waited=5.0, in_state=0.4), ""),
        (seen(progress_page.WRITING, 6.5, waited=5.0, in_state=0.4), TIME_LIMIT),
        (seen(progress_page.WAITING, 9.5, in_state=9.0), ""),
        (seen(progress_page.WAITING, 11.0, in_state=10.5), LOCK_WAIT),
        # A commit is the disk's time.
        (seen(progress_page.COMMITTING, 4.0, in_state=3.0), ""),
        (seen(progress_page.COMMITTING, 9.0, in_state=8.0), STUCK),
        # Its worker has not come to it.
        (seen(progress_page.RUNNING, 100.0, request=6), ""),
    ],
)
def test_when_a_call_is_ended(at: progress_page.Seen, expected: str) -> None:
    assert why(call(), at) == expected


@pytest.mark.parametrize("grant", ["none", "read", "write"])
@pytest.mark.parametrize("state", range(progress_page.SENT + 1))
def test_whatever_a_page_says_a_call_ends(grant: SqlGrant, state: int) -> None:
    """It says again and again that what the call does has begun this moment."""
    made, now_ns = call(grant=grant), int(NOW * 1e9)
    said = progress_page.Seen(now_ns, 0, now_ns, state, 7)
    most = bound(made, LIMITS)
    assert most < (33 if grant == "none" else 50)
    assert why(made, said, since=NOW - most + 1) == ""
    assert why(made, said, since=NOW - most - 1) == (STUCK if state == progress_page.COMMITTING else TIME_LIMIT)
    # The time in which the front didn't run doesn't count.
    pauses = Pauses()
    pauses.notice(NOW - 21, NOW - 1)
    assert why(made, said, since=NOW - most - 1, pauses=pauses) == ""


def test_a_lock_that_is_held_too_long() -> None:
    assert why(call(60_000), seen(progress_page.WRITING, 2.5, in_state=2.1)) == LOCK_HELD
    assert why(call(60_000), seen(progress_page.WRITING, 2.5, in_state=1.9)) == ""


def test_a_worker_that_does_not_start_its_call() -> None:
    assert why(call(), seen(progress_page.IDLE, 100.0, request=6), since=NOW - 1.5) == ""
    assert why(call(), seen(progress_page.IDLE, 100.0, request=6), since=NOW - 2.5) == STUCK


def test_a_client_that_has_gone() -> None:
    assert why(call(gone=True), seen(progress_page.RUNNING, 0.5)) == ""
    assert why(call(gone=True), seen(progress_page.RUNNING, 0.5), others=True) == CLIENT_GONE
    assert why(call(gone=True), seen(progress_page.RUNNING, 0.01), others=True) == ""
    assert why(call(gone=True), seen(progress_page.COMMITTING, 0.5, in_state=0.4), others=True) == ""


@given(st.floats(0.001, 9), st.floats(0, 9))
def test_waiting_never_counts_as_running(ran: float, waited: float) -> None:
    before = why(call(), seen(progress_page.WRITING, ran, in_state=0.001))
    assert (
        why(call(), seen(progress_page.WRITING, ran + waited, waited=waited, in_state=0.001)) == before
        or abs(ran - 1) < 1e-3
    )


_WRITER = """
import sys, time
from edge_runtime.ipc import progress_page
mark = progress_page.Mark(progress_page.open_page(int(sys.argv[1])), 5)
request = 0
while True:
    request = request % 1000 + 1
    mark.start(request)
    mark.waiting()
    # So long that it shows beside the beginning of the next call.
    until = time.monotonic() + 5e-5
    while time.monotonic() < until:
        pass
    mark.writing()
    mark.committing()
    mark.end()
"""


def test_a_page_is_never_seen_half_written() -> None:
    """A call that began this moment was once seen as one that began at zero, and was ended for it."""
    descriptor = progress_page.create()
    opened = progress_page.open_page(descriptor)
    progress_page.clear(opened, 5)
    began = time.monotonic_ns()
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(descriptor)], pass_fds=(descriptor,)) as writer:
        try:
            states = set()
            ends = time.monotonic() + scaled(60)
            running_until = None
            while time.monotonic() < (running_until or ends):
                for _ in range(1000):
                    at = progress_page.read(opened, 5)
                    states.add(at.state)
                    if at.request != progress_page.NONE:
                        assert at.started_ns >= began
                        assert at.started_ns + at.waited_ns <= time.monotonic_ns()
                        assert at.state in (progress_page.RUNNING, progress_page.IDLE) or at.since_ns >= at.started_ns
                if running_until is None and len(states) == 5:
                    running_until = time.monotonic() + 0.35
            assert len(states) == 5
        finally:
            writer.kill()


FIRST = 5.0
"""When the call became the first of its worker."""
AHEAD = 2**63 - 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((AHEAD, 0, 0, 1 << 32 | 7), (int(FIRST * 1e9), 0, 0, progress_page.RUNNING, 7)),
        (
            (2**64 - 1, 2**64 - 1, 2**64 - 1, 5 << 32 | 7),
            (int(FIRST * 1e9), 0, int(FIRST * 1e9), progress_page.LOADING, 7),
        ),
        ((1, AHEAD, 1, 3 << 32 | 7), (1, 0, 1, progress_page.WRITING, 7)),
        ((1, 1, 1, 2**64 - 1), (1, 1, 1, progress_page.RUNNING, progress_page.NONE)),
        ((1, 1, 1, 7 << 32), (1, 1, 1, progress_page.RUNNING, 0)),
        ((3, 2, 1, 4 << 32 | 7), (3, 2, 1, progress_page.COMMITTING, 7)),
    ],
)
def test_what_a_page_says_is_believed_as_far_as_it_can_be(words: tuple[int, ...], expected: tuple[int, ...]) -> None:
    opened = progress_page.open_page(progress_page.create())
    at = 3 * progress_page.SLOT_BYTES // 8
    for place, word in enumerate(words):
        opened[at + place] = word
    assert progress_page.read(opened, 3, FIRST) == expected


def test_a_page_that_changes_all_the_time_says_nothing() -> None:
    class Changing:
        """Another one at each look."""

        looks = 0

        def __getitem__(self, _: int) -> int:
            self.looks += 1
            return self.looks

    words: Any = Changing()
    assert progress_page.read(words, 3) == (0, 0, 0, progress_page.IDLE, progress_page.NONE)
    assert words.looks < 100


def test_a_mark_is_read_as_it_was_made() -> None:
    opened = progress_page.open_page(progress_page.create())
    progress_page.clear(opened, 3)
    assert progress_page.read(opened, 3).request == progress_page.NONE
    mark = progress_page.Mark(opened, 3)
    mark.start(9)
    first = progress_page.read(opened, 3)
    assert (first.state, first.request, first.waited_ns) == (progress_page.RUNNING, 9, 0)
    mark.waiting()
    assert progress_page.read(opened, 3).state == progress_page.WAITING
    mark.writing()
    then = progress_page.read(opened, 3)
    assert then.state == progress_page.WRITING
    assert 0 < then.waited_ns <= then.since_ns - first.started_ns
    mark.committing()
    assert progress_page.read(opened, 3).state == progress_page.COMMITTING
    mark.end()
    assert progress_page.read(opened, 3).state == progress_page.IDLE
    mark.start(10)
    mark.writing()
    # A lock that was free costs no wait, also after a call that waited.
    assert progress_page.read(opened, 3).waited_ns == 0
    assert progress_page.read(opened, 2).request == 0


def test_no_limit_counts_when_the_front_did_not_run() -> None:
    """It was stopped for 20 s, from 21 s ago until a second ago."""
    pauses = Pauses()
    assert pauses.notice(NOW - 21, NOW - 1) == 20.0
    for state, ran, in_state in (
        (progress_page.RUNNING, 20.5, 0.0),
        (progress_page.WRITING, 20.9, 20.8),
        (progress_page.WAITING, 29.0, 29.0),
    ):
        assert why(call(), seen(state, ran, in_state=in_state)) != ""
        assert why(call(), seen(state, ran, in_state=in_state), pauses=pauses) == ""
    assert why(call(), seen(progress_page.RUNNING, 25.0), pauses=pauses) == TIME_LIMIT
    assert why(call(), seen(progress_page.IDLE, 0.0, request=6), since=NOW - 22) == STUCK
    assert why(call(), seen(progress_page.IDLE, 0.0, request=6), since=NOW - 21.9, pauses=pauses) == ""
    assert why(call(), seen(progress_page.IDLE, 0.0, request=6), since=NOW - 24, pauses=pauses) == STUCK


async def test_a_pause_within_a_look_counts_for_no_limit_either(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process was stopped after the look had taken the time, and before it set its next timer."""
    real, paused = time.monotonic, 0.0

    class Links(set[WorkerLink]):
        def __iter__(self) -> Iterator[WorkerLink]:
            nonlocal paused
            paused = 20.0
            return super().__iter__()

    for module in (time, clock):
        monkeypatch.setattr(module, "monotonic", lambda: real() + paused)
    pool, outcomes = Pool(pool_settings(1, queue_wait=10.0)), list[Outcome]()
    pool.links = Links()
    watchdog = Watchdog(pool)
    pool.submit(Call("f", "GET", "", b"", [], "", b"", outcomes.append))
    assert pool.waiting == 1
    # A machine that is busy adds to it, and may make a pause of its own before it.
    told = re.compile(r"this process didn't run for 2\d\.\d s")
    async with deadline(60):
        while not outcomes and not told.search(caplog.text):
            await asyncio.sleep(0.001)
    watchdog.close()
    assert told.search(caplog.text)
    assert pool.waiting == 1


async def test_time_in_which_the_front_was_busy_itself_is_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    real, had, busy = time.monotonic, time.process_time, 0.0
    for module in (time, clock):
        monkeypatch.setattr(module, "monotonic", lambda: real() + busy)
    monkeypatch.setattr(time, "process_time", lambda: had() + busy)
    pool, outcomes = Pool(pool_settings(1, queue_wait=10.0)), list[Outcome]()
    watchdog = Watchdog(pool)
    pool.submit(Call("f", "GET", "", b"", [], "", b"", outcomes.append))
    busy = 20.0
    async with deadline(60):
        while not outcomes:
            await asyncio.sleep(0.001)
    watchdog.close()
    assert pool.waiting == 0


async def test_a_pause_while_a_call_begins_to_wait_counts_for_no_limit_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was stopped before it set the first timer."""
    real, paused = time.monotonic, 0.0
    for module in (time, clock):
        monkeypatch.setattr(module, "monotonic", lambda: real() + paused)
    pool, outcomes = Pool(pool_settings(1, queue_wait=10.0)), list[Outcome]()
    watchdog = Watchdog(pool)
    soon = watchdog.soon

    def watch() -> None:
        nonlocal paused
        paused = 20.0
        soon()

    pool.watch = watch
    pool.submit(Call("f", "GET", "", b"", [], "", b"", outcomes.append))
    due = watchdog._due
    async with deadline(60):
        # Until it has looked.
        while watchdog._due == due:
            await asyncio.sleep(0.001)
    watchdog.close()
    assert (pool.waiting, outcomes) == (1, [])


def test_time_without_its_pauses() -> None:
    pauses = Pauses()
    assert pauses.notice(100.0, 100.2) == 0.0
    assert pauses.passed(0.0, 101.0) == 101.0
    assert pauses.notice(110.0, 120.0) == 10.0
    assert pauses.notice(130.0, 135.0) == 5.0
    assert pauses.passed(100.0, 140.0) == 25.0
    assert pauses.passed(115.0, 140.0) == 15.0
    assert pauses.passed(120.0, 140.0) == 15.0
    assert pauses.passed(133.0, 140.0) == 5.0
    assert pauses.passed(136.0, 140.0) == 4.0
    # It was busy itself, and for the rest of the time it had no processor.
    assert pauses.notice(200.0, 201.0, busy=0.9) == 0.0
    assert pauses.notice(210.0, 212.0, busy=0.5) == 1.5
    assert pauses.passed(200.0, 212.0) == 10.5


def test_a_call_that_gives_up_waiting_has_waited() -> None:
    """As one does for which another process held the database for too long: its own limit doesn't count that time."""
    opened = progress_page.open_page(progress_page.create())
    mark = progress_page.Mark(opened, 3)
    mark.start(9)
    mark.waiting()
    began = progress_page.read(opened, 3).since_ns
    mark.running()
    seen = progress_page.read(opened, 3)
    assert (seen.state, seen.request) == (progress_page.RUNNING, 9)
    assert 0 < seen.waited_ns <= time.monotonic_ns() - began
