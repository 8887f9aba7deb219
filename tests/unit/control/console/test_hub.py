"""Topics and streams, without a server: what is made how often, and what each reader gets of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from control.console import hub
from control.console.hub import Hub
from control.problems import ProblemError
from tests.support.clock import SetClock
from tests.support.deadlines import deadline


class Maker:
    """Makes parts, and counts how often."""

    def __init__(self, clock: SetClock) -> None:
        self._clock = clock
        self.parts = {"a": "<p id=a>1</p>"}
        self.made = 0
        self.error: Exception | None = None

    async def __call__(self) -> dict[str, str]:
        self.made += 1
        if self.error is not None:
            raise self.error
        return dict(self.parts)

    async def times(self, count: int) -> None:
        """Have parts made so many times more."""
        await self._clock.passes(0)
        for _ in range(count):
            before = self.made
            await self._clock.passes(hub.PERIOD)
            assert self.made == before + 1


@pytest.fixture
def clock() -> SetClock:
    return SetClock(timers="stand")


@pytest.fixture
async def streams(clock: SetClock) -> AsyncIterator[Hub]:
    made = Hub(clock)
    yield made
    await made.stop()


class Reader:
    """One who looks at a topic."""

    def __init__(self, streams: Hub, topic: str, maker: Maker, operator: str = "one") -> None:
        self.stream = streams.open(topic, operator, maker)
        self._events = self.stream.events()

    async def following(self) -> tuple[str, Any]:
        """The next event: its name and its data."""
        async with deadline(30):
            name, data = (await anext(self._events)).decode().strip().split("\n")
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    async def parts(self) -> dict[str, str]:
        """The next parts."""
        while True:
            name, data = await self.following()
            if name == "parts":
                return dict(data["parts"])


async def test_parts_are_made_once_for_all_who_look_and_only_while_somebody_does(streams: Hub, clock: SetClock) -> None:
    maker = Maker(clock)
    readers = [Reader(streams, "topic", maker, f"operator-{number}") for number in range(20)]
    assert streams.streams == 20
    assert [await reader.parts() for reader in readers] == [maker.parts] * 20
    assert maker.made == 1, "not once for each reader"
    late = Reader(streams, "topic", maker, "late")
    assert await late.parts() == maker.parts, "one who comes later gets what there is"
    for reader in (*readers, late):
        streams.leave("topic", reader.stream)
    made = maker.made
    await clock.passes(10 * hub.PERIOD)
    assert maker.made == made
    assert streams.streams == 0


async def test_only_what_has_changed_is_sent_and_an_age_that_goes_on_is_no_change(
    streams: Hub, clock: SetClock
) -> None:
    maker = Maker(clock)
    maker.parts["b"] = '<p id=b><time datetime="x" data-ago>1 s ago</time></p>'
    reader = Reader(streams, "topic", maker)
    assert await reader.parts() == maker.parts
    maker.parts["b"] = '<p id=b><time datetime="x" data-ago>2 s ago</time></p>'
    await maker.times(3)
    maker.parts["a"] = "<p id=a>2</p>"
    await maker.times(1)
    assert await reader.parts() == {"a": "<p id=a>2</p>"}
    maker.parts["b"] = '<p id=b><time datetime="y" data-ago>2 s ago</time></p>'
    await maker.times(1)
    assert await reader.parts() == {"b": maker.parts["b"]}


async def test_who_reads_slowly_gets_the_newest_of_each_part(streams: Hub, clock: SetClock) -> None:
    maker = Maker(clock)
    reader = Reader(streams, "topic", maker)
    await maker.times(2)
    for number in range(50):
        maker.parts["a"] = f"<p id=a>{number}</p>"
        await maker.times(1)
    await maker.times(2)
    assert await reader.parts() == {"a": "<p id=a>49</p>"}


async def test_what_cannot_be_made_is_kept_and_its_age_is_told(streams: Hub, clock: SetClock) -> None:
    maker, other = Maker(clock), Maker(clock)
    reader, second = Reader(streams, "broken", maker), Reader(streams, "whole", other)
    await reader.parts()
    maker.error = ProblemError("database_unavailable", "the test says so")
    other.parts["a"] = "<p id=a>2</p>"
    await clock.passes(hub.STALE_AFTER - hub.PERIOD)
    await clock.passes(hub.PERIOD)
    while (event := await reader.following()) == ("beat", 0.0):
        pass
    assert event == ("beat", hub.STALE_AFTER)
    assert await second.parts() == other.parts, "another topic goes on"
    maker.error = RuntimeError("a fault of the page")
    await maker.times(2)
    maker.error = None
    maker.parts["a"] = "<p id=a>again</p>"
    await maker.times(1)
    assert await reader.parts() == maker.parts


class SlowMaker(Maker):
    """Takes 0.3 s each time."""

    async def __call__(self) -> dict[str, str]:
        await self._clock.sleep(0.3)
        return await super().__call__()


async def test_many_pages_of_one_operator_are_late_themselves_and_say_so(streams: Hub, clock: SetClock) -> None:
    many, maker = [SlowMaker(clock) for _ in range(50)], Maker(clock)
    opened = [streams.open(number, "many", made) for number, made in enumerate(many)]
    opened.append(streams.open("one", "one", maker))
    told: list[list[Any]] = [[] for _ in opened]

    async def listen(stream: hub.Stream, ages: list[Any]) -> None:
        async for event in stream.events():
            if event.startswith(b"event: beat\n"):
                ages.append(json.loads(event.split(b"data: ")[1]))

    listening = [asyncio.create_task(listen(stream, ages)) for stream, ages in zip(opened, told, strict=True)]
    await clock.passes(60)
    # A making of the many takes 0.3 s, and the rest behind it as much twice.
    assert maker.made >= 30, "another operator's turn comes once it is due, after one of theirs"
    assert all(1 <= made.made <= 2 for made in many), "they have turns among themselves"
    # The last of them waited for 44 s, and told it with each heartbeat.
    assert set(told[-1]) == {0.0}
    assert told[-2][:23] == [0.0] * 3 + [hub.STALE_AFTER + hub.HEARTBEAT * number for number in range(20)]
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)


async def test_streams_are_bounded_for_all_and_for_each_operator(
    streams: Hub, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "STREAMS", 5)
    monkeypatch.setattr(hub, "OF_OPERATOR", 2)
    maker = Maker(clock)
    for operator, refused in (("a", False), ("a", False), ("a", True), ("b", False), ("c", False), ("d", False)):
        if refused:
            with pytest.raises(ProblemError, match="2 live pages of a"):
                streams.open(operator, operator, maker)
        else:
            streams.open(operator, operator, maker)
    with pytest.raises(ProblemError, match="5 live pages") as caught:
        streams.open("e", "e", maker)
    assert (caught.value.code, caught.value.status) == ("too_many_streams", 503)


async def test_the_end_is_told_to_all_and_no_other_is_let_in(streams: Hub, clock: SetClock) -> None:
    maker = Maker(clock)
    readers = [streams.open("topic", "one", maker) for _ in range(3)]
    streams.close()
    for reader in readers:
        events = [event async for event in reader.events()]
        assert events[-1].startswith(b"event: bye\ndata: ")
        assert 500 <= int(events[-1].split()[-1]) <= 3000
    with pytest.raises(ProblemError) as caught:
        streams.open("topic", "one", maker)
    assert caught.value.code == "shutting_down"
