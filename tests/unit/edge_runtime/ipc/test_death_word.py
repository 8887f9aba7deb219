"""The end of a process is told by its word, whatever ends it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_runtime.ipc import death_word, progress_page
from edge_runtime.ipc.death_word import DeathWatch
from tests.support.deadlines import deadline, scaled
from tests.support.forked_programs import may_be_forked

LIMIT = 60.0
CHILD = may_be_forked(
    """
import os, sys, threading
from edge_runtime.ipc import death_word, progress_page
page = progress_page.open_page(int(sys.argv[1]))
# As the thread of libsql, it goes on for a moment when the main one ends.
threading.Thread(target=threading.Event().wait, daemon=True).start()
death_word.tell_end(page, int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""
)


@pytest.fixture
async def page() -> AsyncIterator[int]:
    descriptor = progress_page.create()
    yield descriptor
    os.close(descriptor)


@contextlib.asynccontextmanager
async def child(page: int, slot: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with a word in this slot; it ends when its input does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(page), str(slot)),
        cwd=Path(__file__).parents[4],
        pass_fds=(page,),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with deadline(LIMIT):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.stdin.close()
        await process.wait()


@contextlib.asynccontextmanager
async def watching(page: int) -> AsyncIterator[DeathWatch]:
    watch = DeathWatch(progress_page.open_page(page))
    watch.start()
    try:
        yield watch
    finally:
        watch.close()


@pytest.mark.parametrize("how", ["killed", "ends"])
async def test_the_end_of_one_is_told_and_not_of_the_other(page: int, how: str) -> None:
    ended, other = asyncio.Event(), asyncio.Event()
    async with watching(page) as watch, child(page, 3) as first, child(page, 5) as second:
        watch.watch(3, first.pid, ended.set)
        watch.watch(5, second.pid, other.set)
        assert not death_word.ends(first.pid)
        if how == "killed":
            first.send_signal(signal.SIGKILL)
        else:
            assert first.stdin is not None
            first.stdin.close()
        await asyncio.wait_for(ended.wait(), scaled(LIMIT))
        assert death_word.ends(first.pid)
        assert not death_word.ends(second.pid)
        assert not other.is_set()
        second.kill()
        await asyncio.wait_for(other.wait(), scaled(LIMIT))


@pytest.mark.parametrize("state", range(progress_page.SENT + 1))
async def test_one_that_runs_no_call_gives_way_before_it_is_told_of(page: int, state: int) -> None:
    policies: list[int] = []
    told = asyncio.Event()
    words = progress_page.open_page(page)
    async with watching(page) as watch, child(page, 4) as process:
        words[4 * progress_page.SLOT_BYTES // 8 + progress_page.WORDS - 1] = state << 32 | 1

        def look() -> None:
            policies.append(os.sched_getscheduler(process.pid))
            told.set()

        watch.watch(4, process.pid, look)
        # As the kernel does at the end of a process, which would be gone before one could look.
        death_word._word(words, 4).value |= 1 << 30
        watch._changed()
        await asyncio.wait_for(told.wait(), scaled(LIMIT))
    assert policies == [os.SCHED_IDLE if state == progress_page.IDLE else os.sched_getscheduler(0)]


async def test_a_slot_tells_of_each_of_its_processes_once(page: int) -> None:
    told: list[int] = []
    last = asyncio.Event()
    async with watching(page) as watch, child(page, 1) as other:
        for number in range(3):
            async with child(page, 0) as process:
                watch.watch(0, process.pid, lambda number=number: told.append(number))
                process.kill()
                async with deadline(LIMIT):
                    while len(told) <= number:
                        await asyncio.sleep(0.002)
                # The words are looked at once more.
                watch.watch(1, other.pid, last.set)
        other.kill()
        await asyncio.wait_for(last.wait(), scaled(LIMIT))
    assert told == [0, 1, 2]


async def test_one_that_has_ended_before_or_is_forgotten_is_not_told_of(page: int) -> None:
    told: list[str] = []
    async with watching(page) as watch, child(page, 2) as last:
        async with child(page, 0) as process:
            process.kill()
            await process.wait()
            watch.watch(0, process.pid, lambda: told.append("ended before"))
        async with child(page, 1) as process:
            watch.watch(1, process.pid, lambda: told.append("forgotten"))
            watch.forget(1)
            process.kill()
            await process.wait()
        ended = asyncio.Event()
        watch.watch(2, last.pid, ended.set)
        last.kill()
        await asyncio.wait_for(ended.wait(), scaled(LIMIT))
    assert told == []


async def test_where_the_kernel_cannot_wait_for_many_words_nothing_is_told(
    page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    # No system call has this number, as on a kernel before 5.16.
    monkeypatch.setattr(death_word, "_FUTEX_WAITV", 4095)
    async with watching(page) as watch, child(page, 0) as process:
        watch._thread.join(scaled(LIMIT))
        assert not watch._thread.is_alive()
        watch.watch(0, process.pid, lambda: told.append(process.pid))
        process.kill()
        await process.wait()
    await asyncio.sleep(0)
    assert told == []
