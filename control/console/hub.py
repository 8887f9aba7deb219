"""Live parts of pages: rendered once for all viewers of the same page, and sent to each as server-sent events.

A topic is what a page shows to operators with the same rights. While somebody is viewing, its parts are rendered once a
second; those that changed are sent to all its streams. A stream keeps the newest of each part, so a slow reader misses
old ones and takes no more memory. Nothing is rendered while nobody is viewing.

Operators take turns: the next topic belongs to the operator who has waited longest, and after a turn an operator rests
for twice as long as it took. So an operator with many open pages delays only those pages, not another operator's. A
stream reports the age of its parts by the clock, whatever is being rendered meanwhile.
"""

import asyncio
import contextlib
import logging
import math
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping

import orjson

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.storage.connection_quotas import ASKS

PERIOD = 1.0
"""Least seconds between two renderings of a topic's parts."""
REST = 2.0
"""How many times as long as a rendering took nothing is rendered for the same operator, nor, for `PERIOD` at most, for
others: live parts take a third of the time at most, unless the database answers slowly."""
PATIENCE = 5.0
"""Seconds within which a topic's parts must be rendered."""
HEARTBEAT = 2.0
"""Seconds without a part after which a stream sends a heartbeat: a page that receives nothing for 5 s says so."""
STALE_AFTER = 5.0
"""Seconds after which streams report how old their parts are."""
STREAMS = 1000
"""Maximum concurrent streams per replica."""
OF_OPERATOR = 50
"""Maximum concurrent streams per operator."""
RETURN_MS = (500, 3000)
"""Milliseconds after which a browser reconnects when the replica stops: minimum, maximum."""

Parts = Mapping[str, str]
"""Parts of a page by id, each an element with that id. `title` is the page's title, and `kind` identifies what the page
shows: when it changes, the page is reloaded."""
Make = Callable[[], Awaitable[Parts]]

_BESIDE_NOW = re.compile(r"(<time [^>]*data-ago>)[^<]*")

log = logging.getLogger("skerry.console")


class Stream:
    """The stream of one viewer, with what hasn't been sent yet."""

    def __init__(self, operator: str, clock: Clock, made_at: float) -> None:
        self._clock = clock
        self.operator = operator
        self._waiting: dict[str, bytes] = {}
        self._woken = asyncio.Event()
        self._made_at = made_at
        """When its parts were rendered, by the clock's `monotonic`."""
        self._told = 0.0
        """The age that was reported last."""
        self._closing = False

    def put(self, parts: Mapping[str, bytes], made_at: float) -> None:
        """Queue these encoded parts, if any, for sending; all other parts are unchanged."""
        self._waiting.update(parts)
        self._made_at = made_at
        if parts or self._told:
            self._woken.set()

    def close(self) -> None:
        """End the stream, and have the browser reconnect soon."""
        self._closing = True
        self._woken.set()

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield what is to be sent, as it arrives, until the stream is closed."""
        yield self._beat()
        told_at = self._clock.monotonic()
        while not self._closing:
            stale_at = math.inf if self._told else self._made_at + STALE_AFTER
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(min(told_at + HEARTBEAT, stale_at) - self._clock.monotonic()):
                    await self._woken.wait()
            self._woken.clear()
            now = self._clock.monotonic()
            if not (self._waiting or self._told or self._age() or self._closing or now >= told_at + HEARTBEAT):
                # New parts have come since, identical to those before.
                continue
            told_at = now
            parts, self._waiting = self._waiting, {}
            for name in ("title", "kind"):
                said = parts.pop(name, None)
                if said is not None:
                    yield b"event: %s\ndata: %s\n\n" % (name.encode(), said.partition(b":")[2])
            if parts:
                self._told = self._age()
                data = b'{"age":%.1f,"parts":{%s}}' % (self._told, b",".join(parts.values()))
                yield b"event: parts\ndata: %s\n\n" % data
            elif not self._closing:
                yield self._beat()
        yield event("bye", random.randint(*RETURN_MS))  # noqa: S311

    def _age(self) -> float:
        """Return how old the parts are; 0 while they are on time."""
        age = round(self._clock.monotonic() - self._made_at, 1)
        return age if age >= STALE_AFTER else 0.0

    def _beat(self) -> bytes:
        self._told = self._age()
        return event("beat", self._told)


class _Topic:
    """A topic that somebody is viewing."""

    def __init__(self, make: Make, clock: Clock) -> None:
        self._clock = clock
        self.make = make
        self.streams: set[Stream] = set()
        self.newest: dict[str, bytes] = {}
        """All parts, encoded."""
        self.made_at = clock.monotonic()
        """When the streams' parts were rendered; at first, when the page was loaded."""
        self.due_at = self.made_at
        """When the parts are to be rendered next."""
        self._compared: dict[str, str] = {}

    async def renew(self) -> None:
        """Render the parts, and send those that have changed. Raises: what the renderer raises."""
        began = self._clock.monotonic()
        self.due_at = began + PERIOD
        async with self._clock.timeout(PATIENCE):
            parts = await self.make()
        self.made_at = began
        # A growing age is no change: the browser updates it itself.
        texts = {id: _BESIDE_NOW.sub(r"\1", text) for id, text in parts.items()}
        changed = {id: _encoded(id, parts[id]) for id, text in texts.items() if self._compared.get(id) != text}
        self.newest = {id: changed.get(id) or self.newest[id] for id in parts}
        self._compared = texts
        for stream in self.streams:
            stream.put(changed, began)


class Hub:
    """The topics and streams of a replica."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._topics: dict[Hashable, _Topic] = {}
        self._free_at: dict[str, float] = {}
        """When something may be rendered for each operator again, by the clock's `monotonic`."""
        self._opened = asyncio.Event()
        self._making: asyncio.Task[None] | None = None
        self._outage = Outage(log, "live parts of pages can't be made")
        self._closing = False

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return sum(len(topic.streams) for topic in self._topics.values())

    def open(self, key: Hashable, operator: str, make: Make) -> Stream:
        """Return a stream of the topic `key`, whose parts `make` renders. End it with `leave`.

        Raises: ProblemError too_many_streams, when there are too many; shutting_down, when the replica stops.
        """
        if self._closing:
            raise ProblemError("shutting_down", "control is stopping; ask another replica")
        mine = sum(stream.operator == operator for topic in self._topics.values() for stream in topic.streams)
        if self.streams >= STREAMS or mine >= OF_OPERATOR:
            which = f"{OF_OPERATOR} live pages of {operator}" if mine >= OF_OPERATOR else f"{STREAMS} live pages"
            raise ProblemError(
                "too_many_streams",
                f"this replica sends to {which} already: close some. This one is right as it was loaded",
                retry_after=30,
            )
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = _Topic(make, self._clock)
        # The page was loaded just now: it becomes older only when it is sent what was rendered before.
        stream = Stream(operator, self._clock, self._clock.monotonic())
        if topic.newest:
            stream.put(topic.newest, topic.made_at)
        topic.streams.add(stream)
        self._opened.set()
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._keep_making())
        return stream

    def leave(self, key: Hashable, stream: Stream) -> None:
        """End a stream, and with the last one its topic."""
        topic = self._topics.get(key)
        if topic is not None:
            topic.streams.discard(stream)
            if not topic.streams:
                del self._topics[key]

    def close(self) -> None:
        """End all streams and accept no more, because the replica is stopping."""
        self._closing = True
        for topic in self._topics.values():
            for stream in topic.streams:
                stream.close()

    async def stop(self) -> None:
        """Cancel the rendering under way."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)

    async def _keep_making(self) -> None:
        """Render the parts of one topic after another until nobody is viewing."""
        while self._topics:
            operator, topic, at = self._next()
            began = self._clock.monotonic()
            if at > began:
                await self._wait(at - began)
                continue
            ASKS.set(operator)
            await self._renew(topic)
            took = self._clock.monotonic() - began
            self._free_at[operator] = began + (1 + REST) * took
            await self._clock.sleep(min(REST * took, PERIOD))

    def _next(self) -> tuple[str, _Topic, float]:
        """Return whose turn is next, for which topic, and when: of those due, the operator who has rested longest."""
        now = self._clock.monotonic()
        turns = dict.fromkeys((stream.operator, topic) for topic in self._topics.values() for stream in topic.streams)
        looking = {operator for operator, _ in turns}
        # An operator who leaves and comes right back must still rest.
        self._free_at = {name: at for name, at in self._free_at.items() if at > now or name in looking}

        def order(turn: tuple[str, _Topic]) -> tuple[float, float, float]:
            free_at, due_at = self._free_at.get(turn[0], -math.inf), turn[1].due_at
            return max(free_at, due_at, now), free_at, due_at

        operator, topic = chosen = min(turns, key=order)
        return operator, topic, order(chosen)[0]

    async def _wait(self, seconds: float) -> None:
        """Wait until this much time has passed or another stream is opened."""
        self._opened.clear()
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await self._opened.wait()

    async def _renew(self, topic: _Topic) -> None:
        try:
            await topic.renew()
            self._outage.worked()
        except (ProblemError, TimeoutError) as error:
            self._outage.failed(str(error) or f"it took longer than {PATIENCE:.0f} s")
        except Exception:
            log.exception("live parts of a page can't be made")


def event(name: str, value: object) -> bytes:
    """Return a server-sent event whose data is one line of JSON."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(value))


def _encoded(id: str, text: str) -> bytes:
    """Return a part as a member of a JSON object."""
    return orjson.dumps(id) + b":" + orjson.dumps(text)
