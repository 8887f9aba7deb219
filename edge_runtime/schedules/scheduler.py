"""Calls functions at the ticks of their schedules and after releases, by the ordinary way of calls (docs/adr/0075).

A tick is claimed in memory. That it has ended is written by the function's own transaction, if the function may write;
otherwise, and if it failed, this module has a worker note it afterwards. What the libsql file knows is read after each
release, through a worker.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from control.protocol import ticks, wire
from control.protocol.cron import CronUnfit
from edge_runtime import clock
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import Answer, Outcome, Refusal
from edge_runtime.dispatch.pool import Hold, Pool
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import frames
from edge_runtime.schedules.tick_rules import Line, next_to_run

log = logging.getLogger("skerry.schedules")

PERIOD: Final = 1.0
"""The most seconds between two looks at the clock, which may jump, and at the release."""
HOLD_PERIOD: Final = 0.1
JUMP: Final = 2.0
"""Seconds by which the time of day may differ from the monotonic clock within a period; with more it has jumped."""
ATTEMPTS: Final = 5
"""How often a tick is tried that couldn't run, or was cut off."""
PAUSE: Final = 1.0
"""Seconds before the second attempt; they double with each."""
CUT_OFF: Final = frozenset(
    (
        *("queue_full", "queue_timeout", "release_changing", "release_changed", "writer_busy", "database_held"),
        *("wal_full", "circuit_open", "node_stopping", "worker_crashed", "commit_unknown", "disk_full"),
    )
)
"""Codes of calls that couldn't run or didn't get to their end: what was done is undone, or the file knows of it."""

_decode: Final = msgspec.json.Decoder(frames.StoredTicks).decode


class Scheduler:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lines: dict[tuple[str, str], Line] = {}
        """By function and cron line."""
        self._known: frames.LocalRelease | None = None
        """The release that the lines are of."""
        self._notes: dict[tuple[str, str, int], bool] = {}
        """The ticks that have ended and aren't in the file yet, and whether they ended well."""
        self._running: set[asyncio.Task[None]] = set()
        """The ticks that run."""
        self._noting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._seed = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._seen = (0.0, 0.0)
        """The time of day and the monotonic clock, when they were last looked at."""
        self.most = max(1, pool.settings.workers // 2)
        """Ticks that may run at once."""

    async def run(self) -> None:
        """Call functions when they are due, until cancelled; what then still runs goes on to its end, unwatched."""
        try:
            while True:
                await clock.sleep(await self._step())
        finally:
            for task in self._tasks:
                task.cancel()

    def status(self, function: str) -> list[dict[str, Any]]:
        """Return, for the node's status, what is known of a function's lines."""
        now = clock.now().timestamp()
        return [
            {
                "cron": line.cron,
                "last_run": None if line.last_run is None else ticks.time_text(line.last_run),
                "last_status": line.last_status or None,
                "next_run": None if line.next_run is None else ticks.time_text(line.next_run),
                "late_seconds": round(line.overdue(now), 3),
                "failures": line.failures,
            }
            for line in self.lines()
            if line.function == function
        ]

    def numbers(self) -> list[wire.LineNumbers]:
        """Return what polls tell of the lines: of too many, those that failed and those that are the latest."""
        now = clock.now().timestamp()
        lines = sorted(self.lines(), key=lambda line: (line.last_status in ("", "ok"), -line.overdue(now)))
        return [
            wire.LineNumbers(
                line.function,
                line.cron,
                int(line.last_run or 0),
                line.last_status[:64],
                int(line.next_run or 0),
                int(line.overdue(now)),
                line.failures,
            )
            for line in lines[: wire.MOST_LINES]
        ]

    def lines(self) -> list[Line]:
        """Return all lines of the release."""
        return [self._lines[key] for key in sorted(self._lines)]

    async def _step(self) -> float:
        """Do what is due; return for how many seconds there is nothing to do, as far as is known."""
        release = self._pool.release
        if release is not self._known and self._pool.hold is Hold.NOTHING and release is not None:
            await self._learn(release)
        now, monotonic = clock.now().timestamp(), clock.monotonic()
        before, self._seen = self._seen, (now, monotonic)
        jumped = abs((now - before[0]) - (monotonic - before[1])) > JUMP
        for line in self._lines.values():
            if now >= line.look or jumped:
                line.claim(now)
        if self._pool.hold is not Hold.NOTHING or release is None or release is not self._known:
            # What is claimed waits for the release.
            return HOLD_PERIOD
        if self._notes and (self._noting is None or self._noting.done()):
            self._noting = self._begin(self._note())
        for line in next_to_run(self._lines.values(), self.most - len(self._running)):
            line.running = line.waiting.pop(0)
            self._running.add(task := self._begin(self._run(line, line.running, release)))
            task.add_done_callback(self._running.discard)
        soonest = min((line.look for line in self._lines.values()), default=now + PERIOD)
        return HOLD_PERIOD if self._notes or self._running else min(PERIOD, max(0.001, soonest - now))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What the file knows

    async def _note(self) -> None:
        """Give the file the notes; if that fails, let a while pass."""
        if await self._exchange() is None or self._notes:
            await clock.sleep(PERIOD)

    async def _learn(self, release: frames.LocalRelease) -> None:
        """Take the lines of a release, and what the file knows of them."""
        wanted = {f.name: f.manifest for f in release.functions if f.manifest.schedule or f.manifest.on_release}
        stored: list[frames.StoredTick] = []
        if wanted:
            answer = await self._exchange()
            if answer is None or self._pool.release is not release:
                return
            stored = answer
        lines, now = {}, clock.now().timestamp()
        for name, manifest in wanted.items():
            for cron in (*manifest.schedule, *([""] if manifest.on_release else ())):
                key = name, cron
                line = lines[key] = self._lines.get(key) or Line(name, cron, seed=self._seed)
                try:
                    line.follow(manifest)
                except CronUnfit as error:
                    log.error("%s isn't called by its schedule: %s (are there time zones, as in tzdata?)", name, error)
                    del lines[key]
                    continue
                rows = [row for row in stored if (row.function, row.cron) == key]
                if cron:
                    line.learn({row.tick for row in rows} | {n[2] for n in self._notes if n[:2] == key}, now)
                else:
                    line.waiting = [row.tick for row in rows if row.state == "due" and row.tick != line.running]
                    line.waiting = [tick for tick in line.waiting if (*key, tick) not in self._notes]
                ran = max(
                    (row for row in rows if row.state in ("done", "failed")), key=lambda row: row.at, default=None
                )
                if ran is not None and line.last_run is None:
                    line.last_run, line.late = float(ran.at), float(max(0, ran.at - ran.tick))
                    line.last_status = "ok" if ran.state == "done" else "failed"
        self._lines, self._known = lines, release

    async def _exchange(self) -> list[frames.StoredTick] | None:
        """Give the file the notes, and return the ticks that it knows; None if there is no worker to do that, or it
        can't now."""
        links = [link for link in self._pool.links if link.usable and not link.spare]
        if not links:
            return None
        notes = [frames.TickNote(*key, done=done) for key, done in self._notes.items()]
        link: WorkerLink = min(links, key=lambda link: len(link.jobs))
        order = link.order(frames.TICKS, frames.encode_json(frames.TickNotes(notes)))
        self._pool.place(link)
        try:
            answer = frames.told(await order.answer, frames.TICKED, _decode)
        except frames.ChildGone as error:
            log.warning("the ticks that the database knows can't be read, and it is tried again: %s", error)
            return None
        if answer.noted:
            for one in notes:
                self._notes.pop((one.function, one.cron, one.tick), None)
        return answer.ticks

    # Calls

    async def _run(self, line: Line, tick: int, release: frames.LocalRelease) -> None:
        """Run a tick to its end, on this release; or have it wait again, if another one comes first."""
        began = clock.now().timestamp()
        status, noted = "", False
        try:
            for attempt in range(ATTEMPTS):
                if attempt:
                    await clock.sleep(PAUSE * 2 ** (attempt - 1))
                    await self._released(release)
                if not self._same(release):
                    break
                outcome = await self._call(line, tick, release.generation)
                status, noted = _status(outcome), _noted(outcome)
                if status not in CUT_OFF:
                    break
                log.info("%s couldn't run to its end (%s)", _name(line, tick), status)
        finally:
            line.running = None
        if (status in CUT_OFF or not status) and not self._same(release):
            # The next release decides, if it has the line.
            line.waiting = [tick, *line.waiting][-line.most :]
            return
        writes = next(f for f in release.functions if f.name == line.function).manifest
        line.last_run, line.late, line.last_status = began, max(0.0, began - tick), status
        line.end(tick)
        if status == "ok":
            log.info("%s ended well, begun %.1f s after it was due", _name(line, tick), line.late)
        else:
            line.failures += 1
            log.error("%s failed: %s", _name(line, tick), status)
        if not (noted and writes.sql == "write" and "POST" not in (writes.read_only_methods or ())):
            self._notes[line.function, line.cron, tick] = status == "ok"

    def _same(self, release: frames.LocalRelease) -> bool:
        """Return whether calls of this release can still run; better code for it makes no other one."""
        served = self._pool.release
        return served is not None and served.generation == release.generation

    async def _released(self, release: frames.LocalRelease) -> None:
        """Wait while a release holds calls."""
        while self._pool.hold is not Hold.NOTHING and self._same(release):
            await clock.sleep(HOLD_PERIOD)

    async def _call(self, line: Line, tick: int, generation: int) -> Outcome:
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            if not ended.done():
                ended.set_result(outcome)

        headers = [(b"host", b"localhost"), (b"content-length", b"0")]
        headers += [(name.encode(), value.encode()) for name, value in ticks.headers(line.cron, tick)]
        identity = f"{self._seed}-{next(self._numbers)}".encode()
        self._pool.submit(
            Call(
                line.function,
                "POST",
                "/",
                b"",
                headers,
                "127.0.0.1",
                b"",
                done,
                request_id=identity,
                generation=generation,
            )
        )
        return await ended


def _status(outcome: Outcome) -> str:
    """Return how a tick ended, as it is shown."""
    if isinstance(outcome, Refusal):
        return "ok" if outcome.code == "tick_done" else outcome.code
    return "ok" if outcome.status < 300 else f"answer_{outcome.status}"


def _noted(outcome: Outcome) -> bool:
    """Return whether the transaction of a function that may write has noted the tick."""
    return outcome.status < 500 if isinstance(outcome, Answer) else outcome.code == "tick_done"


def _name(line: Line, tick: int) -> str:
    """Return what the log calls a tick."""
    which = f"the tick of {line.cron}" if line.cron else "the call after the release"
    return f"{line.function}: {which} at {ticks.time_text(tick)}"
