"""One operator's view of nodes' records: what has come and isn't sent yet, and how fast its nodes may send.

A view is bounded in bytes. Where its reader is slow, the oldest records go, and the reader is told how many; records
that were left out before, because they were too many, are told apart from these.

A view has a budget of records a second. Where its nodes would send more than that, each gets the same limit, the
highest that the budget allows: quiet nodes lose nothing, and busy ones are cut to one level.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from control.clock import Clock
from control.protocol import wire
from control.protocol.counts import counted

BUFFER_BYTES = 1024 * 1024
"""Bytes of records that wait for their reader."""
PIECE_BYTES = 64 * 1024
"""Bytes that are handed to the reader at a time."""
TOGETHER = 0.1
"""Seconds for which records are collected before they are handed over."""
HEARTBEAT = 5.0
"""Seconds without anything to send after which an empty line is sent: so each side notices that the other is gone."""
LOOK = 0.25
"""Seconds between two checks whether the view has to end."""
TELL_EVERY = 1.0
"""Seconds between two notices of the same kind."""
HISTORY_SECONDS = 10.0
"""Seconds that nodes have to send what is there already."""
BUDGET = 2000.0
"""Records a second of all nodes together."""
LEAST_RATE = 0.05
"""Records a second that a node may send at least."""
BURST = 2.0
"""Seconds of its rate that a node may send at once."""
NAMED = 20
"""Nodes that a notice names."""
COUNT_TEXTS = {
    "dropped": "records were dropped, because they were read too slowly",
    "sampled": "records were left out evenly, because there are too many",
    "left_out": "nodes have older records that were asked for, too",
    "invalid": "lines of nodes weren't records",
}
END_TEXTS = {
    "shutting_down": "this replica of control stops; ask again",
    "credentials_invalid": "the operator was revoked",
    "token_expired": "the operator's token has ended",
    "session_ended": "the session has ended, as by signing out: sign in again",
    "role_insufficient": "what the operator may was changed; ask again",
    "watch_ended": "control has lost the view; ask again",
}


class Ask(NamedTuple):
    """What an operator wants to see, whose rights were checked."""

    operator: str
    """The operator's name."""
    may: Callable[[], Awaitable[str]]
    """Called again and again: returns why the view must end, as an error's code; '' while the operator may go on."""
    groups: list[str] | None
    """The names of the groups that the operator may see; None for all."""
    node: str | None = None
    """The name or id of the node that is watched; None for all nodes of the groups."""
    group: str | None = None
    """The name of the group that is watched; None for all that the operator may see."""
    question: wire.Question | None = None
    """The question; its id and rate are set when the view begins. None asks for lines from now on."""


class Nodes(NamedTuple):
    """The nodes that a view is about, as they were when it began."""

    asked: int
    """Those that could be asked."""
    offline: int
    too_old: int
    offline_names: list[str]
    """The first of those that are offline."""
    too_old_names: list[str]


class Notice(msgspec.Struct, tag_field="kind", tag="notice", omit_defaults=True):
    """Something that is said about the records, between them."""

    notice: str
    """`begin`, `offline`, `too_old`, `history` (everything that was there already has been sent), `silent` (nodes that
    didn't tell that), `left_out` (older records than those that were told), `sampled` (at the nodes), `dropped` (for a
    slow reader), `invalid` (lines that weren't records), or `end`."""
    message: str
    count: int = 0
    nodes: list[str] = []
    code: str = ""
    """With `end`: why, as an error's code."""


def notice(kind: str, message: str, count: int = 0, nodes: list[str] | None = None, code: str = "") -> bytes:
    """Return a notice as a line."""
    return msgspec.json.encode(Notice(kind, message, count, nodes or [], code)) + b"\n"


def level(demands: Iterable[float], budget: float) -> float:
    """Return the highest limit with which nodes of these demands together send at most `budget`. Pure.

    All numbers are records a second. If they demand less than the budget, each may also send what is left.
    """
    ordered = sorted(demands)
    left, count = budget, len(ordered)
    for demand in ordered:
        if demand * count >= left:
            return left / count
        left -= demand
        count -= 1
    return (ordered[-1] if ordered else 0.0) + left


class SentByNode:
    """What a node has sent of a watch, and what it may still send."""

    __slots__ = ("at", "credit", "demand")

    def __init__(self, credit: float, at: float) -> None:
        self.credit = credit
        """Records that it may send now."""
        self.at = at
        """When it last sent something, by the loop's clock."""
        self.demand = 0
        """Records that it had since demands were last computed, with those that it left out."""

    def allow(self, lines: int, rate: float, now: float) -> int:
        """Return how many of these lines are taken, from a node that may send `rate` a second."""
        most = max(self.credit, 1.0, BURST * rate)
        self.credit = min(self.credit + (now - self.at) * rate, most)
        self.at = now
        taken = min(lines, int(self.credit))
        self.credit -= taken
        return taken


class NodeRates:
    """The nodes of one watch that send, as one replica sees them."""

    IDLE = 60.0
    """Seconds after which a node that sends nothing is forgotten."""
    ACTIVE = 3.0
    """Seconds for which a node that sent something counts in the sharing of the budget."""

    def __init__(self, limit: int) -> None:
        """`limit`: records of what was there already, which a node may send beyond its rate."""
        self._limit = limit
        self.nodes: dict[str, SentByNode] = {}

    def take(self, node_id: str, lines: int, skipped: int, rate: float, now: float) -> int:
        """Return how many of a node's lines are taken; it has left out `skipped` more by itself."""
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = SentByNode(self._limit + BURST * rate, now)
        node.demand += lines + skipped
        return node.allow(lines, rate, now)

    def note(self, node_id: str, lines: int, now: float) -> None:
        """Count what a node has sent through another replica, which has limited it."""
        node = self.nodes.get(node_id)
        if node is None:
            node = self.nodes[node_id] = SentByNode(0.0, now)
        node.demand += lines
        node.at = now

    def demands(self, seconds: float, now: float) -> list[float]:
        """Return the records a second of each active node in the last `seconds`, and forget the idle ones."""
        for id in [id for id, node in self.nodes.items() if now - node.at > self.IDLE]:
            del self.nodes[id]
        found = []
        for node in self.nodes.values():
            if now - node.at <= self.ACTIVE:
                found.append(node.demand / seconds)
            node.demand = 0
        return found


def node_rates(question: wire.Question) -> NodeRates:
    """Return the rates of the nodes that answer a question. With a call, a node sends what the call logged."""
    return NodeRates(question.limit * (wire.LINES_OF_CALL + 1 if question.kind == "calls" else 1))


class View:
    """What one operator gets of a watch: records are `put`, and the reader takes `pieces`."""

    def __init__(self, id: str, question: wire.Question, ask: Ask, nodes: Nodes, clock: Clock) -> None:
        self.id = id
        self.question = question
        self.kind = question.kind
        self.operator = ask.operator
        self.may = ask.may
        self.nodes = nodes
        self.rates = node_rates(question)
        self.rate = max(LEAST_RATE, BUDGET / max(1, nodes.asked))
        """Records a second that each node may send."""
        self.told_rate = self.rate
        """The rate that other replicas were told."""
        self.ended = ""
        """Why the view has to end, as an error's code."""
        self.answered: set[str] = set()
        """Ids of the nodes that have told all that they had."""
        self.begun = False
        """Whether somebody reads."""
        self._clock = clock
        self.made_at = self._clock.monotonic()
        self._queue: deque[tuple[bytes, int]] = deque()
        self._size = 0
        self._counts = dict.fromkeys(("dropped", "sampled", "left_out", "invalid"), 0)
        self._told_at = 0.0
        self._shared_at = self.made_at
        self._event = asyncio.Event()

    def put(self, lines: bytes, count: int) -> None:
        """Take records as lines, for the reader; drop the oldest ones when they are too many."""
        queue = self._queue
        queue.append((lines, count))
        self._size += len(lines)
        while self._size > BUFFER_BYTES:
            gone, number = queue.popleft()
            self._size -= len(gone)
            self._counts["dropped"] += number
        self._event.set()

    def count(self, what: str, number: int) -> None:
        """Count records that aren't shown (`sampled`, `left_out` or `invalid`), which the reader is told soon."""
        if number:
            self._counts[what] += number
            self._event.set()

    def done(self, node_id: str) -> None:
        """Note that a node has told all that it had when it was asked."""
        self.answered.add(node_id)
        self._event.set()

    def end(self, code: str) -> None:
        """End the view. What isn't read yet isn't shown any more, unless this replica just stops."""
        if not self.ended:
            self.ended = code
            if code != "shutting_down":
                self._queue.clear()
                self._size = 0
            self._event.set()

    def share(self) -> None:
        """Set the nodes' rate by what they had to send since the last time; at most once a second."""
        now = self._clock.monotonic()
        passed = now - self._shared_at
        if passed >= 1.0:
            self._shared_at = now
            demands = self.rates.demands(passed, now)
            if demands:
                self.rate = max(LEAST_RATE, level(demands, BUDGET))

    async def pieces(self, gone: "asyncio.Future[Any]", names: Callable[[], Any]) -> AsyncIterator[bytes]:
        """Yield what is sent to the reader, until the view ends or `gone` is done.

        `names`, a coroutine, finds the names of the nodes that haven't told what they had.
        """
        self.begun = True
        gone.add_done_callback(lambda _: self._event.set())
        for line in self._beginning():
            yield line
        waits = self.question.history
        heard = self._clock.monotonic()
        while not gone.done():
            for piece in self._take():
                heard = self._clock.monotonic()
                yield piece
                if gone.done():
                    return
            now = self._clock.monotonic()
            if self.ended:
                for line in self._untold(now, last=True):
                    yield line
                yield notice("end", END_TEXTS.get(self.ended, "the view has ended"), code=self.ended)
                return
            if waits and not self._queue and self._told_all(now):
                for line in self._untold(now, last=True):
                    yield line
                waits = False
                missing = self.nodes.asked - len(self.answered)
                if missing > 0:
                    text = f"{counted(missing, 'node')} didn't answer within {HISTORY_SECONDS:.0f} s"
                    yield notice("silent", text, missing, await names())
                yield notice("history", "all that was there already has been told", len(self.answered))
                if not self.question.follow:
                    return
                continue
            if now - heard >= HEARTBEAT:
                heard = now
                yield b"\n"
            await self._wait()

    def _beginning(self) -> list[bytes]:
        nodes = self.nodes
        lines = [notice("begin", f"asked: {counted(nodes.asked, 'node')}", nodes.asked)]
        if nodes.offline:
            lines.append(
                notice("offline", "nodes are offline or revoked and were not asked", nodes.offline, nodes.offline_names)
            )
        if nodes.too_old:
            text = "nodes have a version of skerry-edge that can't be asked"
            lines.append(notice("too_old", text, nodes.too_old, nodes.too_old_names))
        return [b"".join(lines)]

    def _told_all(self, now: float) -> bool:
        return len(self.answered) >= self.nodes.asked or now - self.made_at >= HISTORY_SECONDS

    def _take(self) -> list[bytes]:
        """Return what waits, in pieces of a size that the connection takes at once, and notices of what is missing."""
        self._event.clear()
        now = self._clock.monotonic()
        pieces = self._untold(now)
        parts, size = [], 0
        # One piece: what comes while it is sent may push out what is left here, and only that is counted.
        while self._queue and size < PIECE_BYTES:
            lines, _ = self._queue.popleft()
            self._size -= len(lines)
            parts.append(lines)
            size += len(lines)
        if parts:
            pieces.append(b"".join(parts))
        return pieces

    def _untold(self, now: float, *, last: bool = False) -> list[bytes]:
        """Return notices of records that are missing, if it is time for them."""
        if not any(self._counts.values()) or (now - self._told_at < TELL_EVERY and not last):
            return []
        self._told_at = now
        told = [notice(what, COUNT_TEXTS[what], number) for what, number in self._counts.items() if number]
        self._counts = dict.fromkeys(self._counts, 0)
        return [b"".join(told)]

    async def _wait(self) -> None:
        """Wait until there is something to send, or until it is time to see whether the view ends."""
        if self._queue:
            return
        try:
            async with self._clock.timeout(LOOK):
                await self._event.wait()
        except TimeoutError:
            return
        await asyncio.sleep(TOGETHER)
