"""Counts of function calls as nodes report them, for the pages of nodes.

Control doesn't keep them. A node is asked while somebody views its page, once for all viewers on this replica, and
reports at once and then every 5 s.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec

from control.api.node_views import DetailedNode
from control.api.services import Services
from control.problems import ProblemError
from control.protocol import wire
from control.telemetry.watching.node_records import FunctionRecord
from control.telemetry.watching.view import Ask, Notice
from control.telemetry.watching.watch_service import COUNTS

PATIENCE = 6.0
"""Seconds for which a page without scripts waits for the node, and after which a node counts as not answering."""
LINGER = 5.0
"""Seconds after the last view until the node is no longer asked."""
RETRY = 5.0
"""Seconds from a failed request to the next one."""
MOST = 1000
"""Most records that a node reports at a time."""
SHOWN = 100
"""Of these, how many a page shows."""


@dataclass(frozen=True)
class ToldFunctions:
    """What a page shows of a node's counts."""

    state: Literal["offline", "too_old", "unasked", "asked", "silent", "refused", "told"]
    """`unasked`: nobody is viewing; `asked`: no answer yet; `silent`: none in time; `refused`: control can't ask."""
    rows: list[FunctionRecord] = field(default_factory=list)
    """By the function's name, the newest release first."""
    left_out: int = 0
    """Number of further known records, with fewer failed calls or fewer calls."""
    more: bool = False
    """Whether the node has even more."""
    at: datetime | None = None
    """When the node reported."""
    since: datetime | None = None
    """When the node began to count, by its own clock."""
    problem: str = ""
    """Why control can't ask."""


class _AskedNode:
    """A node that is asked, and what it has reported."""

    def __init__(self, now: float) -> None:
        self.looked_at = self.begun_at = now
        """By the clock's `monotonic`."""
        self.ended_at = 0.0
        """When the last request ended; 0 while one is open."""
        self.problem = ""
        """Why the last request couldn't be made."""
        self.told_at: datetime | None = None
        self.told = asyncio.Event()
        self.more = False
        self.task: asyncio.Task[None] | None = None
        self._t = ""
        self._before: dict[tuple[str, int], FunctionRecord] = {}
        self._now: dict[tuple[str, int], FunctionRecord] = {}

    def take(self, record: FunctionRecord) -> None:
        """Take a record. While a new report arrives, records missing from it are shown from the previous report."""
        if record.t != self._t:
            self._t, self._before, self._now = record.t, self._now, {}
        self._now[record.function, record.release] = record

    def is_over(self, now: float) -> bool:
        """Return whether the node is no longer asked and nobody is viewing."""
        return bool(self.ended_at) and now - self.looked_at > LINGER

    def shown(self, now: float) -> ToldFunctions:
        if self.problem:
            return ToldFunctions("refused", problem=self.problem)
        if self.told_at is None:
            return ToldFunctions("silent" if now - self.begun_at > PATIENCE else "asked")
        known = list((self._before | self._now).values())
        worst = sorted(known, key=lambda one: (-one.failed, -one.calls))[:SHOWN]
        worst.sort(key=lambda one: (one.function, -one.release))
        since = _time(worst[0].since) if worst else None
        return ToldFunctions("told", worst, len(known) - len(worst), self.more, self.told_at, since)


class NodeFunctions:
    """The nodes that this replica asks for their counts."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._clock = services.clock
        self._asked: dict[str, _AskedNode] = {}
        """By the node's id."""

    def known(self, node: DetailedNode) -> ToldFunctions:
        """Return what the node has reported to current viewers."""
        if node.state in ("offline", "revoked"):
            return ToldFunctions("offline")
        if not _can_tell(node):
            return ToldFunctions("too_old")
        asked, now = self._asked.get(node.id), self._clock.monotonic()
        if asked is None or asked.is_over(now):
            return ToldFunctions("unasked")
        return asked.shown(now)

    def look(self, node: DetailedNode, operator: str) -> ToldFunctions:
        """Return the same, and keep asking the node for as long as this is called repeatedly. `operator`: the name of
        the viewer, who may see the node."""
        found = self.known(node)
        if found.state in ("offline", "too_old"):
            return found
        now = self._clock.monotonic()
        for id in [id for id, one in self._asked.items() if one.is_over(now)]:
            del self._asked[id]
        asked = self._asked.setdefault(node.id, _AskedNode(now))
        asked.looked_at = now
        if asked.task is None or (asked.ended_at and now - asked.ended_at > RETRY):
            asked.begun_at, asked.ended_at = now, 0.0
            asked.task = asyncio.create_task(self._ask(node.id, operator, asked))
        return asked.shown(now)

    async def answer(self, node: DetailedNode, operator: str) -> ToldFunctions:
        """Wait for the node's answer, for at most `PATIENCE` seconds, and return the same."""
        found = self.look(node, operator)
        asked = self._asked.get(node.id)
        if found.state in ("offline", "too_old") or asked is None:
            return found
        try:
            async with self._clock.timeout(PATIENCE):
                await asked.told.wait()
        except TimeoutError:
            return ToldFunctions("silent")
        return self.known(node)

    async def stop(self) -> None:
        """Stop asking nodes."""
        tasks = [one.task for one in self._asked.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, node_id: str, operator: str, asked: _AskedNode) -> None:
        watching = self._services.watching
        question = wire.Question("", self._services.clock.now(), COUNTS, history=True, limit=MOST)
        # Every viewer may see the node: the page checks that each time. The view belongs to no single operator.
        ask = Ask(operator, _goes_on, None, node_id, None, question)
        try:
            view = await watching.begin(ask)
            asked.problem = ""
            try:
                gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                async with aclosing(view.pieces(gone, _nobody)) as pieces:  # type: ignore[type-var]
                    # A piece arrives at least every 5 s, if only an empty line.
                    async for piece in pieces:
                        self._take(asked, piece)
                        if self._clock.monotonic() - asked.looked_at > LINGER:
                            break
            finally:
                watching.leave(view)
        except ProblemError as problem:
            asked.problem = problem.detail
        finally:
            asked.ended_at = self._clock.monotonic()
            asked.told.set()

    def _take(self, asked: _AskedNode, piece: bytes) -> None:
        for line in piece.split(b"\n"):
            if not line:
                continue
            said = _decode(line)
            if isinstance(said, FunctionRecord):
                asked.take(said)
            elif said.notice == "left_out":
                asked.more = True
            if isinstance(said, FunctionRecord) or (said.notice == "history" and said.count):
                asked.told_at = self._services.clock.now()
                asked.told.set()


_decode = msgspec.json.Decoder(FunctionRecord | Notice).decode


def _can_tell(node: DetailedNode) -> bool:
    """Return whether the node's version supports the request."""
    questions = node.capabilities.get("questions")
    return node.protocol >= wire.WATCH_PROTOCOL and isinstance(questions, list) and COUNTS in questions


async def _goes_on() -> str:
    """Return no reason to end: the view ends only when nobody is viewing."""
    return ""


async def _nobody() -> list[str]:
    """Return no names: there is one node, so its name isn't needed."""
    return []


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
