"""A clock of the front that a test moves (`edge_runtime.clock`), in the test's own process or in a front's.

It goes as the system's does until it is stood still, and from then on no timer fires but by `move`. Timers that were
set before it was put in the system's place aren't its own: it is put there before the front is made.
"""

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self
from unittest import mock

import orjson

from edge_runtime import clock
from tests.support.deadlines import deadline

TURNS = 12
"""Turns of the loop that everything has that a timer led to, before the next timer fires."""
LIMIT = 60.0
"""Seconds, by the system's clock, until what a test waits for must have come true."""


class MovedTimer:
    """A timer of a clock that is moved."""

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._callback: Callable[..., object] | None = callback
        self._args = args
        self._context = contextvars.copy_context()

    @property
    def set(self) -> bool:
        """Whether it is still to be fired."""
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        """Have the loop call it in one of its next turns, unless it is cancelled until then."""
        asyncio.get_running_loop().call_soon(self._call, context=self._context)

    def _call(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(*self._args)


class _Timeout:
    """As `asyncio.Timeout`, which it has for everything but the time."""

    def __init__(self, moved: "MovedClock", delay: float | None) -> None:
        self._moved = moved
        self._when = None if delay is None else moved.monotonic() + delay
        self._inner = asyncio.timeout(None)
        self._timer: MovedTimer | None = None

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        self.reschedule(self._when)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> bool | None:
        self._stop()
        return await self._inner.__aexit__(kind, error, at)

    def reschedule(self, when: float | None) -> None:
        self._stop()
        self._when = when
        self._inner.reschedule(None)
        if when is not None:
            # At a time that is past: in the next turn of the loop.
            self._timer = self._moved.call_at(when, self._inner.reschedule, 0.0)

    def when(self) -> float | None:
        return self._when

    def expired(self) -> bool:
        return self._inner.expired()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class MovedClock:
    """All its timers are of one loop."""

    def __init__(self) -> None:
        self._ahead = 0.0
        """Seconds by which it is ahead of the system's clock, while it goes."""
        self._stands_at: float | None = None
        """What it says while it stands."""
        self._began = self.monotonic(), datetime.now(UTC)
        self._timers: list[tuple[float, int, MovedTimer]] = []
        self._numbers = itertools.count()
        self._next: asyncio.TimerHandle | None = None

    # What it is in the place of: `edge_runtime.clock`

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead if self._stands_at is None else self._stands_at

    def now(self) -> datetime:
        began, day = self._began
        return day + timedelta(seconds=self.monotonic() - began)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> MovedTimer:
        return self.call_at(self.monotonic() + delay, callback, *args)

    async def sleep(self, delay: float) -> None:
        if delay <= 0:
            await asyncio.sleep(0)
            return
        over = asyncio.Event()
        timer = self.call_later(delay, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def timeout(self, delay: float | None) -> _Timeout:
        return _Timeout(self, delay)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> MovedTimer:
        timer = MovedTimer(callback, args)
        if when <= self.monotonic():
            timer.fire()
            return timer
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        self._look()
        return timer

    # The test's

    def stand(self) -> None:
        """Stand still from now on."""
        self._stands_at = self.monotonic()
        self._look()

    def set_day(self, day: datetime) -> None:
        """Have the time of day jump, as when a clock is set. Nothing comes due by that."""
        self._began = self.monotonic(), day

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Stand still until the block ends."""
        self.stand()
        try:
            yield
        finally:
            self.go()

    def go(self) -> None:
        """Go on, from what it says now."""
        self._ahead, self._stands_at = self.monotonic() - time.monotonic(), None
        self._look()

    async def move(self, seconds: float) -> None:
        """Move by so much. What comes due on the way is fired in its order, each at its own time, and whatever that
        leads to in the loop happens before the next. It stands still from then on."""
        self.stand()
        end = self.monotonic() + seconds
        await self._settle()
        while (due := self._due(end)) is not None:
            due.fire()
            await self._settle()
        self._stands_at = end

    async def until(self, condition: Callable[[], Any], step: float = 1.0) -> None:
        """Move by `step` seconds again and again, until the condition holds."""
        async with deadline(LIMIT):
            while not condition():
                await self.move(step)
                await asyncio.sleep(0.005)

    @property
    def waiting(self) -> int:
        """Timers that are set."""
        return sum(timer.set for _, _, timer in self._timers)

    def _due(self, until: float) -> MovedTimer | None:
        """Take the next timer that is due until then, and stand at its time; None if none is."""
        while self._timers and self._timers[0][0] <= until:
            when, _, timer = heapq.heappop(self._timers)
            if timer.set:
                assert self._stands_at is not None
                self._stands_at = max(self._stands_at, when)
                return timer
        return None

    async def _settle(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def _look(self) -> None:
        """While it goes, have the loop fire what is due, and look again when the next timer is."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._stands_at is not None:
            return
        now = self.monotonic()
        while self._timers and (self._timers[0][0] <= now or not self._timers[0][2].set):
            heapq.heappop(self._timers)[2].fire()
        if self._timers:
            self._next = asyncio.get_running_loop().call_later(self._timers[0][0] - now, self._look)


@contextlib.contextmanager
def moved_clock() -> Iterator[MovedClock]:
    """Have the front of this process go by a clock that is moved."""
    made = MovedClock()
    names = ("monotonic", "now", "call_later", "sleep", "timeout")
    with mock.patch.multiple(clock, **{name: getattr(made, name) for name in names}):
        yield made


def let_go() -> None:
    """Have the clock of this process go, if it is one that is moved: a front that ends needs its timers."""
    moved = getattr(clock.sleep, "__self__", None)
    if isinstance(moved, MovedClock):
        moved.go()


# A front in another process


class ClockOfProcess:
    """The clock of a front in another process, whose program has its own obey the other end of this socket."""

    def __init__(self) -> None:
        self._socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)

    async def stand(self) -> None:
        """As `MovedClock.stand`."""
        await self._do("stand")

    async def go(self) -> None:
        """As `MovedClock.go`."""
        await self._do("go")

    async def move(self, seconds: float) -> None:
        """As `MovedClock.move`."""
        await self._do("move", seconds)

    async def _do(self, what: str, *given: float) -> None:
        loop = asyncio.get_running_loop()
        async with deadline(LIMIT):
            await loop.sock_sendall(self._socket, orjson.dumps([what, *given]))
            assert await loop.sock_recv(self._socket, 100) == b"done"

    def close(self) -> None:
        self._socket.close()
        self.theirs.close()


def obey(moved: MovedClock, descriptor: int) -> asyncio.Task[None]:
    """Do in the running loop with a clock what the process at the socket's other end asks for."""
    return asyncio.ensure_future(_obey(moved, socket.socket(fileno=descriptor)))


async def _obey(moved: MovedClock, asked: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    asked.setblocking(False)
    with asked:
        while message := await loop.sock_recv(asked, 100):
            what, *given = orjson.loads(message)
            done = getattr(moved, what)(*given)
            if done is not None:
                await done
            await loop.sock_sendall(asked, b"done")
