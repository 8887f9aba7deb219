"""What is sent of the records that somebody watches, where control takes a batch only later."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from control.protocol import wire
from edge_runtime.sync import watch_answers
from edge_runtime.sync.control_client import ControlRefused, NoAnswer
from edge_runtime.sync.watch_answers import WatchAnswers
from edge_runtime.telemetry import records
from edge_runtime.telemetry.ring import Ring
from tests.support.edge import until

COUNT = 100
RATE = 20.0


class Client:
    """Control, as far as records are sent there: it fails the first batch that leaves some out."""

    skew = 0.0
    closed = False

    def __init__(self, fault: Exception) -> None:
        self.fault: Exception | None = fault
        self.lines: list[bytes] = []
        self.left_out = 0
        self.follows = False
        """What was there before has been sent."""

    async def send_records(
        self, _watch: str, lines: bytes, *, sampled: int = 0, left_out: int = 0, done: bool = False
    ) -> float:
        self.follows |= done
        if sampled and self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.lines += lines.splitlines()
        self.left_out += sampled + left_out
        return RATE


@pytest.mark.parametrize(
    "fault", [NoAnswer("unreachable", "gone"), ControlRefused(503, "busy", "busy"), ControlRefused(429, "many", "many")]
)
async def test_each_record_is_sent_or_counted_once_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(watch_answers, "FIRST_PAUSE", 0.01)
    ring, client, watched = Ring(tmp_path, 1 << 20, 3600.0), Client(fault), WatchAnswers()
    watched.ring = ring
    ring.start()
    running = asyncio.ensure_future(watched.run())
    try:
        asked: Any = client
        watched.take(wire.Watch("one", [wire.Question("a", datetime.now(UTC), history=True, rate=RATE)]), asked)
        await until(lambda: client.follows)
        for number in range(COUNT):
            ring.put(records.of_node("warning", str(number), "n1"))
        await until(lambda: client.fault is None and len(client.lines) + client.left_out >= COUNT)
        assert len(set(client.lines)) + client.left_out == COUNT
        assert len(client.lines) == len(set(client.lines))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        ring.close()
