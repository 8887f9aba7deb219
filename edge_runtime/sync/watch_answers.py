"""Answers control's watches: sends it the node's records while somebody watches them.

Answers to polls contain the questions. A thread searches for existing records, new ones are taken as they are written,
and both go to control in batches. New records wait to be sent, within limits: if there are too many, every second one
is left out, then three of four, and so on, so that the rest covers the whole time. Omitted records are counted.

While control doesn't answer, nothing is kept in memory: once it answers again, records from in between are searched
for. While nobody watches, all of this is idle and costs nothing.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from control.protocol import wire
from edge_runtime import clock
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.telemetry import records, search
from edge_runtime.telemetry.ring import Ring
from edge_runtime.telemetry.search import FoundLines, LineFilter

MOST: Final = 32
"""The most questions that are answered at the same time."""
PAUSE: Final = 0.5
"""Seconds between two batches of one question."""
TOGETHER: Final = 0.02
"""Seconds during which the first records are collected."""
WRITTEN: Final = 10.0
"""The most seconds that a search waits until the ring has written earlier lines."""
BATCH_LINES: Final = 1000
"""The most records of a batch."""
BATCH_BYTES: Final = 256 * 1024
"""Bytes of a batch, which may exceed this by one record."""
FIRST_PAUSE: Final = 1.0
"""Seconds from a batch that control didn't take to the next attempt; doubled each time, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE: Final = 15.0
COUNTS_PERIOD: Final = 5.0
"""Seconds between two sets of functions' counts."""
AFTER_FAULT: Final = 5.0
"""Seconds from a bug in the node that ended an answer until control may ask the question again."""
KEPT_LINES: Final = 2000
"""The most records that wait to be sent."""
KEPT_BYTES: Final = 512 * 1024
"""Their bytes, at most."""
SLACK: Final = 5.0
"""The most seconds, besides a call's duration, between the times of its record and of what it logged."""
AFTERWARDS: Final = 30.0
"""Seconds after a call during which the node's log may say more about it, such as where it trapped."""
BURST: Final = 2.0
"""How many seconds' worth of its rate may be sent at once."""
KINDS: Final = ("lines", "calls", "functions")
"""The kinds of questions that this version can answer."""

log = logging.getLogger("skerry.agent")


def known(question: wire.Question) -> bool:
    """Return whether this version can answer the question."""
    return question.kind in KINDS and question.level in records.LEVELS


class _Head(msgspec.Struct):
    """The fields by which a record is matched."""

    t: str = ""
    kind: str = ""
    level: str = ""
    function: str = ""
    call: str = ""
    outcome: str = ""
    seconds: float = 0.0


_decode: Final = msgspec.json.Decoder(_Head).decode


class Taken(NamedTuple):
    lines: list[bytes]
    sampled: int
    """Records that were left out since the last time."""


class WatchAnswer:
    """The answer to one question: which records belong to it, and those that wait to be sent."""

    def __init__(self, question: wire.Question) -> None:
        self.question = question
        self.rate = question.rate
        """Records per second that may be sent."""
        self.came = asyncio.Event()
        """Set while something waits."""
        self._kinds = (records.CALL,) if question.kind == "calls" else (records.LOG, records.NODE)
        self._levels = frozenset(records.LEVELS[records.LEVELS.index(question.level) :])
        self._keeps = True
        self._lines: list[bytes] = []
        self._size = 0
        self._count = 0
        self._stride = 1
        """One of this many records is kept."""
        self._sampled = 0
        self._credit = 0.0
        self._at = clock.monotonic()

    def begin(self) -> None:
        """Forget waiting records, and keep new ones from now on."""
        self._keeps = True
        self._forget()

    def rest(self) -> None:
        """Forget waiting records, and keep no new ones: `past` will find them."""
        self.begin()
        self._keeps = False

    def without_waiting(self, lines: list[bytes]) -> list[bytes]:
        """Return the lines found by `past` that don't already wait to be sent: it may find lines from after `begin`.

        Their times can't tell, since a record is made some time after the event.
        """
        waiting = Counter(self._lines)
        kept = []
        for line in lines:
            if waiting[ended := line + b"\n"]:
                waiting[ended] -= 1
            else:
                kept.append(line)
        return kept

    def put(self, line: bytes) -> None:
        """Keep a new record, if it belongs to the answer: a tap of the ring."""
        if not self._keeps or records.time_in(line) is None or not self._fits(line):
            return
        self._count += 1
        if self._count % self._stride:
            self._sampled += 1
            return
        self._lines.append(line)
        self._size += len(line)
        self.came.set()
        while len(self._lines) > 1 and (len(self._lines) > KEPT_LINES or self._size > KEPT_BYTES):
            kept = self._lines[1::2]
            self._sampled += len(self._lines) - len(kept)
            self._lines, self._size, self._stride = kept, sum(map(len, kept)), self._stride * 2

    def take(self) -> Taken:
        """Return what may be sent now, sampled evenly if that isn't everything."""
        now = clock.monotonic()
        self._credit = min(self._credit + (now - self._at) * self.rate, max(1.0, BURST * self.rate))
        self._at = now
        lines, most = self._lines, int(self._credit)
        if len(lines) > most:
            self._sampled += len(lines) - most
            lines = [lines[at * len(lines) // most] for at in range(most)]
        self._credit -= len(lines)
        taken = Taken(lines, self._sampled)
        self._forget()
        return taken

    def _forget(self) -> None:
        self._lines, self._size, self._stride, self._count, self._sampled = [], 0, 1, 0, 0
        self.came.clear()

    def past(self, folder: Path, since: float) -> FoundLines:
        """Return the records of the ring in `folder` from a time (Unix seconds) on.

        It may take 0.3 s: don't call it in the loop's thread. Raises: OSError, when the folder can't be read.
        """
        question, limit = self.question, self.question.limit
        of_calls, calls = question.kind == "calls", (question.call,) if question.call else ()
        level = "" if of_calls else question.level
        wanted = LineFilter(since, None, self._kinds, question.function, level, calls)
        if not of_calls:
            found = search.search(folder, wanted, limit)
            return FoundLines(sorted(found.lines, key=lambda line: line[: records.TIME_END]), found.more)
        some = question.failed or question.slowest
        found = search.search(folder, wanted, search.MOST if some else limit)
        lines = [line for line in found.lines if self._fits(line)]
        if question.slowest:
            lines.sort(key=lambda line: _decode(line).seconds)
        lines, more = lines[-limit:], found.more or len(lines) > limit
        return FoundLines([*lines, *_logged(folder, lines)], more)

    def _fits(self, line: bytes) -> bool:
        question = self.question
        try:
            head = _decode(line)
        except ValueError:
            return False
        if head.kind not in self._kinds or (question.function and head.function != question.function):
            return False
        if question.call and head.call != question.call:
            return False
        if question.kind == "calls":
            return not question.failed or head.outcome != "ok"
        return head.level in self._levels


def _logged(folder: Path, calls: list[bytes]) -> list[bytes]:
    """Return what calls logged, at most `wire.LINES_OF_CALL` lines of each, and what the node logged about them."""
    heads = [head for head in map(_decode, calls) if head.call]
    if not heads:
        return []
    ends = [records.seconds_of(head.t) for head in heads]
    # A call's record is written when it ends.
    since, until = min(ends) - max(head.seconds for head in heads) - SLACK, max(ends) + AFTERWARDS
    counts = dict.fromkeys((head.call for head in heads), 0)
    found = []
    logged = LineFilter(since, until, (records.LOG, records.NODE), calls=tuple(counts))
    for line in search.search(folder, logged, search.MOST).lines:
        head = _decode(line)
        counts[head.call] += head.kind == records.LOG
        if head.kind == records.NODE or counts[head.call] <= wire.LINES_OF_CALL:
            found.append(line)
    return found


class WatchAnswers:
    """Answers all questions from polls, while `run` is running."""

    def __init__(self) -> None:
        self.ring: Ring | None = None
        """The folder of the records; None if there are none to show."""
        self.functions: Callable[[wire.Question], Awaitable[FoundLines]] | None = None
        """Makes records of functions' counts; None if nothing is counted."""
        self.digest = ""
        """The digest of the watches that the node knows, which its polls contain."""
        self._questions: dict[str, wire.Question] = {}
        self._client: ControlClient | None = None
        self._broken: set[str] = set()
        """Ids of questions whose answers ended only for now: control should ask again."""
        self._changed = asyncio.Event()

    def take(self, watch: wire.Watch, client: ControlClient) -> None:
        """Answer these questions from now on, and no others."""
        self.digest = watch.digest
        self._questions = {question.id: question for question in watch.questions[:MOST] if known(question)}
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
        """Answer one question until nobody needs the answer any more."""
        try:
            if question.kind == "functions":
                await self._tell_counts(question)
            else:
                await self._follow(WatchAnswer(question))
            return
        except ControlRefused as refusal:
            log.debug("control takes no more records of watch %s: %s", question.id, refusal.message)
        except Exception:
            if self._client is None or not self._client.closed:  # otherwise the node has joined again
                log.exception("records that are watched can't be sent")
                # Control asks again as soon as it may.
                await clock.sleep(AFTER_FAULT)
        # If control still needs the answer, it asks again with the next poll.
        self.digest = ""
        self._broken.add(question.id)

    async def _follow(self, answer: WatchAnswer) -> None:
        """Send existing and new records. Raises: ControlRefused, when control wants no more."""
        question, ring, client = answer.question, self.ring, self._client
        if ring is None or client is None:
            return
        since = question.since.timestamp() - client.skew
        tell_end, failures = question.history, 0
        ring.taps.append(answer.put)
        try:
            while True:
                begun = time.time()
                if question.follow:
                    answer.begin()
                else:
                    answer.rest()
                try:
                    await self._send_past(client, ring, answer, since, tell_end=tell_end)
                    since, tell_end, failures = begun, False, 0
                    if not question.follow:
                        return
                    while True:
                        since = await self._send_next(client, answer)
                        failures = 0
                except (NoAnswer, ControlRefused) as error:
                    # Records from until then are on the disk.
                    answer.rest()
                    failures += 1
                    await _wait_after(error, failures)
        finally:
            ring.taps.remove(answer.put)

    async def _tell_counts(self, question: wire.Question) -> None:
        """Send functions' counts, once or repeatedly. Raises: ControlRefused, as `_follow` does."""
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
        self, client: ControlClient, ring: Ring, answer: WatchAnswer, since: float, *, tell_end: bool
    ) -> None:
        """Send what was put into the ring from a time (Unix seconds) until the answer's last `begin`.

        If wanted, report then that this was everything.
        """
        written, limit = ring.mark(), time.monotonic() + WRITTEN
        while not written() and time.monotonic() < limit:  # noqa: ASYNC110 (a thread writes)
            await asyncio.sleep(0.05)
        try:
            past = await asyncio.to_thread(answer.past, ring.folder, since)
        except OSError as error:
            log.debug("the node's records can't be read: %s", error)
            past = FoundLines([], False)
        lines = answer.without_waiting(past.lines)
        answer.rate = await _send_all(client, answer.question, lines, more=past.more, done=tell_end) or answer.rate

    async def _send_next(self, client: ControlClient, answer: WatchAnswer) -> float:
        """Send the next records; return the time (Unix seconds) up to which everything has been sent."""
        await answer.came.wait()
        await clock.sleep(TOGETHER)
        moment = time.time()
        taken = answer.take()
        for lines in _batches(taken.lines) or [[]]:
            answer.rate = await client.send_records(answer.question.id, b"".join(lines), sampled=taken.sampled)
            taken = taken._replace(sampled=0)
        # With less than a record per second, there is no use in checking twice a second.
        await clock.sleep(min(max(PAUSE, 1.0 / max(answer.rate, 0.05)), 20.0))
        return moment


async def _send_all(
    client: ControlClient, question: wire.Question, lines: list[bytes], *, more: bool, done: bool
) -> float | None:
    """Send existing records; return how many may be sent per second from then on, or None if nothing was sent.

    With `more`, the answer has others too; `done` tells control that these were all.
    """
    rate = None
    batches = _batches(lines) or ([[]] if done else [])
    for number, group in enumerate(batches, 1):
        last = number == len(batches)
        body = b"".join(line + b"\n" for line in group)
        rate = await client.send_records(question.id, body, left_out=int(more and last), done=done and last)
    return rate


async def _wait_after(error: NoAnswer | ControlRefused, failures: int) -> None:
    """Wait until the next attempt, after `failures` failed ones. Raises: ControlRefused, when none can succeed."""
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
