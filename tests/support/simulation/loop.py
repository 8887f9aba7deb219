"""An event loop whose time is a number: it never waits, it goes to the next timer at once. And the clocks of a run."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from control.clock import LoopTimers

START = datetime(2026, 11, 26, 8, tzinfo=UTC)
"""What the one clock says when a run begins."""
OFFSET: ContextVar[timedelta] = ContextVar("offset", default=timedelta())
"""By how much the clock of the process that asks is ahead of the one clock."""


class Stuck(AssertionError):
    """Everything waits, and no timer is set: nothing would ever happen again."""


class Handle:
    """A callback that is to run, at a time or as soon as it is its turn."""

    __slots__ = ("_when", "args", "callback", "context")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, when: float = 0.0
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context or copy_context()
        self._when = when

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self._when


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks and timers in their order; what is given to a thread is done at once, in this one.

    asyncio's own way to choose what runs next does as much and takes twice the time, of which a run is mostly made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._next: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._said = 0.0, START

    def time(self) -> float:
        """Seconds since the run began."""
        return self._now

    def clock(self) -> datetime:
        """The one clock."""
        if self._said[0] != self._now:
            self._said = self._now, START + timedelta(seconds=self._now)
        return self._said[1]

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        handle = Handle(callback, args, context)
        self._next.append(handle)
        return handle

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        handle = Handle(callback, args, context, when)
        # Of two at the same time the one that was set first is first.
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def forget_timers(self) -> None:
        """Nothing that was to happen later happens."""
        self._timers.clear()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Call `func` now; return a future that is done."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _run_once(self) -> None:
        ready, timers = self._next, self._timers
        if not ready:
            while timers and timers[0][2].callback is None:
                heapq.heappop(timers)
            if not timers:
                raise Stuck("everything waits, and no timer is set")
            self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= self._now:
                ready.append(heapq.heappop(timers)[2])
        while ready and not self._stopping:  # type: ignore[attr-defined]
            handle = ready.popleft()
            if handle.callback is not None:
                try:
                    handle.context.run(handle.callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"{handle.callback} failed", "exception": error})

    def _process_events(self, event_list: Any) -> None:
        """There are no sockets."""

    def _write_to_self(self) -> None:
        """There is no other thread that could wake this one."""


class Clock(LoopTimers):
    """Control's clock in one replica."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> datetime:
        return self._loop.clock()

    @property
    def doubt(self) -> str:
        return ""

    def compare(self, theirs: datetime, before: datetime) -> None:
        """The database's clock is this one."""


class NodeTime(datetime):
    """In the place of `datetime` in a node's modules: its `now` is the node's clock, which may be wrong."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.clock() + OFFSET.get()
