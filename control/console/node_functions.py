"""What nodes have counted of their functions' calls, for the pages of nodes.

Control doesn't keep it. A node is asked while somebody looks at its page, once for all who look at this replica, and
tells it at once and then every 5 s.
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
"""Seconds for which a page without a script waits for the node, and after which a node is said not to answer."""
LINGER = 5.0
"""Seconds since somebody looked after which the node isn't asked any more."""
RETRY = 5.0
"""Seconds from a question that couldn't be asked to the next one."""
MOST = 1000
"""Records that a node tells at a time, at most."""
SHOWN = 100
"""Of these, on a page."""


@dataclass(frozen=True)
class ToldFunctions:
    """What a page shows of it."""

    state: Literal["offline", "too_old", "unasked", "asked", "silent", "refused", "told"]
    """`unasked`: nobody looks; `asked`: it hasn't answered yet; `silent`: not in time; `refused`: control can't ask."""
    rows: list[FunctionRecord] = field(default_factory=list)
    """By the function's name, the newest release first."""
    left_out: int = 0
    """Further ones that are known, with fewer failed calls or fewer calls."""
    more: bool = False
    """Whether the node has still more."""
    at: datetime | None = None
    """When it told."""
    since: datetime | None = None
    """Since when it counts, by its own clock."""
    problem: str = ""
    """Why control can't ask."""


class _AskedNode:
    """A node that is asked, and what it told."""

    def __init__(self, now: float) -> None:
        self.looked_at = self.begun_at = now
        """In the clock's `monotonic`."""
        self.ended_at = 0.0
        """When the last question ended; 0 while there is one."""
        self.problem = ""
        """Why the last question couldn't be asked."""
        self.told_at: datetime | None = None
        self.told = asyncio.Event()
        self.more = False
        self.task: asyncio.Task[None] | None = None
        self._t = ""
        self._before: dict[tuple[str, int], FunctionRecord] = {}
        self._now: dict[tuple[str, int], FunctionRecord] = {}

    def take(self, record: FunctionRecord) -> None:
        """Take a record. While those of a new telling come, those of the one before are shown that are missing."""
        if record.t != self._t:
            self._t, self._before, self._now = record.t, self._now, {}
        self._now[record.function, record.release] = record

    def is_over(self, now: float) -> bool:
        """Return whether it isn't asked any more, and nobody looks."""
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
    """The nodes that this replica asks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._clock = services.clock
        self._asked: dict[str, _AskedNode] = {}
        """By the node's id."""

    def known(self, node: DetailedNode) -> ToldFunctions:
        """Return what the node has told those who look now."""
        if node.state in ("offline", "revoked"):
            return ToldFunctions("offline")
        if not _can_tell(node):
            return ToldFunctions("too_old")
        asked, now = self._asked.get(node.id), self._clock.monotonic()
        if asked is None or asked.is_over(now):
            return ToldFunctions("unasked")
        return asked.shown(now)

    def look(self, node: DetailedNode, operator: str) -> ToldFunctions:
        """The same; the node is asked from now on, while this is called again and again. `operator`: the name of who
        looks, and may see the node."""
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
        """Return the same, after the node's answer, for which this waits `PATIENCE` seconds at most."""
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
        """Ask no node any more."""
        tasks = [one.task for one in self._asked.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, node_id: str, operator: str, asked: _AskedNode) -> None:
        watching = self._services.watching
        question = wire.Question("", self._services.clock.now(), COUNTS, history=True, limit=MOST)
        # Whoever looks may see the node: the page asks that each time. The view is no single operator's.
        ask = Ask(operator, _goes_on, None, node_id, None, question)
        try:
            view = await watching.begin(ask)
            asked.problem = ""
            try:
                gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                async with aclosing(view.pieces(gone, _nobody)) as pieces:  # type: ignore[type-var]
                    # There is a piece each 5 s at least, an empty line if nothing else.
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
    """Return whether the node's version knows the question."""
    questions = node.capabilities.get("questions")
    return node.protocol >= wire.WATCH_PROTOCOL and isinstance(questions, list) and COUNTS in questions


async def _goes_on() -> str:
    """Nothing ends the view but that nobody looks."""
    return ""


async def _nobody() -> list[str]:
    """There is one node, so its name needn't be told."""
    return []


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
