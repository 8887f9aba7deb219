"""Sends records of this node to control while somebody watches them; while nobody does, it waits and costs nothing.

Polls bring the questions. What was there already is searched for in a thread, what comes is taken as it is written, and
both go to control in batches. Where control doesn't answer, nothing is kept in memory: when it answers again, what came
meanwhile is searched for, too.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.telemetry import followed
from edge_runtime.telemetry.followed import Followed
from edge_runtime.telemetry.ring import Ring

MOST: Final = 32
"""Questions that are answered at once."""
PAUSE: Final = 0.5
"""Seconds between two batches of one question."""
TOGETHER: Final = 0.02
"""Seconds in which the first records come together."""
WRITTEN: Final = 10.0
"""Seconds for which a search waits at most until the ring has written what was put into it before."""
BATCH_LINES: Final = 1000
"""Records of a batch."""
BATCH_BYTES: Final = 256 * 1024
"""Bytes of a batch, at most one record more."""
FIRST_PAUSE: Final = 1.0
"""Seconds from a batch that control didn't take to the next attempt; doubled each time, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE: Final = 15.0
COUNTS_PERIOD: Final = 5.0
"""Seconds from one telling of what is counted of functions to the next."""
AFTER_FAULT: Final = 5.0
"""Seconds from a fault of the node's own, for which a question isn't answered, until control may ask it again."""

log = logging.getLogger("skerry.agent")


class WatchedRecords:
    """Answers the questions that polls bring, while `run` is running."""

    def __init__(self) -> None:
        self.ring: Ring | None = None
        """Where the records are; None where there are none to show."""
        self.functions: Callable[[wire.Question], Awaitable[followed.Past]] | None = None
        """Makes records of what is counted of functions; None where nothing is."""
        self.digest = ""
        """What polls tell that the node knows of who watches it."""
        self._questions: dict[str, wire.Question] = {}
        self._client: ControlClient | None = None
        self._broken: set[str] = set()
        """Ids of questions whose answers have ended, but not for good: control is to ask again."""
        self._changed = asyncio.Event()

    def take(self, watch: wire.Watch, client: ControlClient) -> None:
        """Answer these questions from now on, and no others."""
        self.digest = watch.digest
        self._questions = {question.id: question for question in watch.questions[:MOST] if followed.known(question)}
        self._client = client
        self._changed.set()

    async def run(self) -> None:
        """Answer questions until cancelled."""
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                for id in [id for id in tasks if id not in self._questions or id in self._broken]:
                    tasks.pop(id).cancel()
                self._broken.clear()
                for id, question in self._questions.items():
                    if id not in tasks:
                        tasks[id] = asyncio.create_task(self._answer(question))
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _answer(self, question: wire.Question) -> None:
        """Answer one question until nobody asks it any more."""
        try:
            if question.kind == "functions":
                await self._tell_counts(question)
            else:
                await self._follow(Followed(question))
            return
        except ControlRefused as refusal:
            log.debug("control takes no more records of watch %s: %s", question.id, refusal.message)
        except Exception:
            if self._client is None or not self._client.closed:  # else the node has joined again
                log.exception("records that are watched can't be sent")
                # Control asks again as soon as it may.
                await clock.sleep(AFTER_FAULT)
        # If control still wants to know, it asks again by the next poll.
        self.digest = ""
        self._broken.add(question.id)

    async def _follow(self, asked: Followed) -> None:
        """Send what there is and what comes. Raises: ControlRefused, when control wants no more of it."""
        question, ring, client = asked.question, self.ring, self._client
        if ring is None or client is None:
            return
        since = question.since.timestamp() - client.skew
        tell_end, failures = question.history, 0
        ring.taps.append(asked.put)
        try:
            while True:
                begun = time.time()
                if question.follow:
                    asked.begin()
                else:
                    asked.rest()
                try:
                    await self._send_past(client, ring, asked, since, tell_end=tell_end)
                    since, tell_end, failures = begun, False, 0
                    if not question.follow:
                        return
                    while True:
                        since = await self._send_next(client, asked)
                        failures = 0
                except (NoAnswer, ControlRefused) as error:
                    # What comes meanwhile is on the disk.
                    asked.rest()
                    failures += 1
                    await _wait_after(error, failures)
        finally:
            ring.taps.remove(asked.put)

    async def _tell_counts(self, question: wire.Question) -> None:
        """Send what is counted of functions, once or again and again. Raises: ControlRefused, as `_follow` does."""
        client, functions = self._client, self.functions
        if client is None or functions is None:
            return
        tell_end, failures = question.history, 0
        while True:
            try:
                told = await functions(question)
                await _send_all(client, question, told.lines, more=told.more, done=tell_end)
                tell_end, failures = False, 0
                if not question.follow:
                    return
                await clock.sleep(COUNTS_PERIOD)
            except (NoAnswer, ControlRefused) as error:
                failures += 1
                await _wait_after(error, failures)

    async def _send_past(
        self, client: ControlClient, ring: Ring, asked: Followed, since: float, *, tell_end: bool
    ) -> None:
        """Send what was put into the ring from a time (Unix seconds) on before the last `Followed.begin`, and where it
        is wanted, that this was all."""
        written, limit = ring.mark(), time.monotonic() + WRITTEN
        while not written() and time.monotonic() < limit:  # noqa: ASYNC110 (a thread writes)
            await asyncio.sleep(0.05)
        try:
            past = await asyncio.to_thread(asked.past, ring.folder, since)
        except OSError as error:
            log.debug("the node's records can't be read: %s", error)
            past = followed.Past([], False)
        lines = asked.without_waiting(past.lines)
        asked.rate = await _send_all(client, asked.question, lines, more=past.more, done=tell_end) or asked.rate

    async def _send_next(self, client: ControlClient, asked: Followed) -> float:
        """Send what comes next; return the time (Unix seconds) up to which all has been sent."""
        await asked.came.wait()
        await clock.sleep(TOGETHER)
        moment = time.time()
        taken = asked.take()
        for lines in _batches(taken.lines) or [[]]:
            asked.rate = await client.send_records(asked.question.id, b"".join(lines), sampled=taken.sampled)
            taken = taken._replace(sampled=0)
        # With less than a record a second, there is no use in asking twice a second.
        await clock.sleep(min(max(PAUSE, 1.0 / max(asked.rate, 0.05)), 20.0))
        return moment


async def _send_all(
    client: ControlClient, question: wire.Question, lines: list[bytes], *, more: bool, done: bool
) -> float | None:
    """Send records that are there; `more`: others fit, too; `done`: control is to be told that these were all. Return
    how many may be sent a second from then on, None where nothing was sent."""
    rate = None
    batches = _batches(lines) or ([[]] if done else [])
    for number, group in enumerate(batches, 1):
        last = number == len(batches)
        body = b"".join(line + b"\n" for line in group)
        rate = await client.send_records(question.id, body, left_out=int(more and last), done=done and last)
    return rate


async def _wait_after(error: NoAnswer | ControlRefused, failures: int) -> None:
    """Wait until the next attempt, after so many that failed. Raises: ControlRefused, when none can succeed."""
    # 404: a replica of an earlier version.
    if isinstance(error, ControlRefused) and error.status < 500 and error.status not in (404, 408, 429):
        raise error
    pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
    await clock.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311


def _batches(lines: list[bytes]) -> list[list[bytes]]:
    """Return the lines in groups that fit into batches."""
    groups: list[list[bytes]] = []
    size = BATCH_BYTES
    for line in lines:
        if size >= BATCH_BYTES or len(groups[-1]) == BATCH_LINES:
            groups.append([])
            size = 0
        groups[-1].append(line)
        size += len(line)
    return groups
