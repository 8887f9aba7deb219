"""Live parts of pages: rendered once for all who look at the same, and sent to each as a stream of server-sent events.

A topic is what a page shows, to operators who may see the same. While somebody looks, its parts are made once a second;
those that differ from before go to all its streams. A stream keeps the newest of each part, so one that reads slowly
misses what is old, and takes no more memory. Nothing is made while nobody looks.
"""

import asyncio
import logging
import random
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping

import orjson

from control.clock import Clock
from control.log_throttle import Outage
from control.problems import ProblemError

PERIOD = 1.0
"""Seconds between two makings of all topics' parts, at least."""
REST = 2.0
"""And as many times as long as the last ones took: what is live takes a third of the time at most."""
PATIENCE = 5.0
"""Seconds for a topic's parts to be made."""
HEARTBEAT = 15.0
"""Seconds without a part after which a stream is told that it is alive."""
STALE_AFTER = 5.0
"""Seconds without a making after which streams are told how old their parts are."""
STREAMS = 1000
"""Streams of a replica at once."""
OF_OPERATOR = 50
"""Streams of one operator at once."""
RETURN_MS = (500, 3000)
"""Milliseconds after which a browser comes again when the replica stops: at least, at most."""

Parts = Mapping[str, str]
"""Parts of a page by their id, each an element with that id. `title` is the page's title, and `kind` what the page is:
where that changes, it is loaded again."""
Make = Callable[[], Awaitable[Parts]]

_BESIDE_NOW = re.compile(r"(<time [^>]*data-ago>)[^<]*")

log = logging.getLogger("skerry.console")


class Stream:
    """One who looks: what isn't sent yet."""

    def __init__(self, operator: str, clock: Clock) -> None:
        self._clock = clock
        self.operator = operator
        self._waiting: dict[str, bytes] = {}
        self._woken = asyncio.Event()
        self._age = 0.0
        self._closing = False

    def put(self, parts: Mapping[str, bytes]) -> None:
        """Have the newest of these encoded parts sent."""
        self._waiting.update(parts)
        self._age = 0.0
        self._woken.set()

    def tell_age(self, seconds: float) -> None:
        """Have it told that its parts are as old as this; 0: they are new again."""
        if seconds or self._age:
            self._woken.set()
        self._age = seconds

    def close(self) -> None:
        """Have it end, and come again soon."""
        self._closing = True
        self._woken.set()

    async def events(self) -> AsyncGenerator[bytes]:
        """What is to be sent, as it comes, until the stream is closed."""
        yield event("beat", self._age)
        while not self._closing:
            try:
                async with self._clock.timeout(HEARTBEAT):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            parts, self._waiting = self._waiting, {}
            for name in ("title", "kind"):
                said = parts.pop(name, None)
                if said is not None:
                    yield b"event: %s\ndata: %s\n\n" % (name.encode(), said.partition(b":")[2])
            if parts:
                data = b'{"age":%.1f,"parts":{%s}}' % (self._age, b",".join(parts.values()))
                yield b"event: parts\ndata: %s\n\n" % data
            elif not self._closing:
                yield event("beat", self._age)
        yield event("bye", random.randint(*RETURN_MS))  # noqa: S311


class _Topic:
    """What some look at."""

    def __init__(self, make: Make, clock: Clock) -> None:
        self._clock = clock
        self.make = make
        self.streams: set[Stream] = set()
        self.newest: dict[str, bytes] = {}
        """All parts, encoded."""
        self.made_at = clock.monotonic()
        self._compared: dict[str, str] = {}

    async def renew(self, now: float) -> None:
        """Make the parts, and send those that have changed. Raises what the making raises."""
        async with self._clock.timeout(PATIENCE):
            parts = await self.make()
        self.made_at = now
        # An age that goes on is no change: the browser writes it anew by itself.
        texts = {id: _BESIDE_NOW.sub(r"\1", text) for id, text in parts.items()}
        changed = {id: _encoded(id, parts[id]) for id, text in texts.items() if self._compared.get(id) != text}
        self.newest = {id: changed.get(id) or self.newest[id] for id in parts}
        self._compared = texts
        for stream in self.streams:
            if changed:
                stream.put(changed)
            else:
                stream.tell_age(0.0)


class Hub:
    """A replica's topics and streams."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._topics: dict[Hashable, _Topic] = {}
        self._making: asyncio.Task[None] | None = None
        self._outage = Outage(log, "live parts of pages can't be made")
        self._closing = False

    @property
    def streams(self) -> int:
        """How many look now."""
        return sum(len(topic.streams) for topic in self._topics.values())

    def open(self, key: Hashable, operator: str, make: Make) -> Stream:
        """A stream of the topic `key`, whose parts `make` makes. End it by `leave`.

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
        stream = Stream(operator, self._clock)
        if topic.newest:
            stream.put(topic.newest)
        topic.streams.add(stream)
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._keep_making())
        return stream

    def leave(self, key: Hashable, stream: Stream) -> None:
        """End a stream; with the last one, its topic."""
        topic = self._topics.get(key)
        if topic is not None:
            topic.streams.discard(stream)
            if not topic.streams:
                del self._topics[key]

    def close(self) -> None:
        """Have all streams end, and take no other: the replica stops."""
        self._closing = True
        for topic in self._topics.values():
            for stream in topic.streams:
                stream.close()

    async def stop(self) -> None:
        """End what is being made."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)

    async def _keep_making(self) -> None:
        """Make all topics' parts, one after the other, until nobody looks any more."""
        while self._topics:
            began = self._clock.monotonic()
            for topic in list(self._topics.values()):
                if topic.streams:
                    await self._renew(topic, self._clock.monotonic())
            took = self._clock.monotonic() - began
            await self._clock.sleep(max(PERIOD - took, REST * took))

    async def _renew(self, topic: _Topic, now: float) -> None:
        try:
            await topic.renew(now)
            self._outage.worked()
        except (ProblemError, TimeoutError) as error:
            self._outage.failed(str(error) or f"it took longer than {PATIENCE:.0f} s")
        except Exception:
            log.exception("live parts of a page can't be made")
        if now - topic.made_at >= STALE_AFTER:
            for stream in topic.streams:
                stream.tell_age(now - topic.made_at)


def event(name: str, value: object) -> bytes:
    """A server-sent event, whose data is JSON on one line."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(value))


def _encoded(id: str, text: str) -> bytes:
    """A part as a member of a JSON object."""
    return orjson.dumps(id) + b":" + orjson.dumps(text)
