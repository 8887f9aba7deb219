"""How long a view of records is asked for again."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from control.cli.support import record_stream
from control.cli.support.client import ATTEMPTS, Unreachable
from control.cli.support.record_stream import RecordClient

RECORD = b'{"kind":"log","t":"2026-11-30T12:00:00.000Z","message":"a line"}'


class AwayControl(RecordClient):
    """Control that is lost the given times, the first `opened` of them when it has begun to answer, and then tells one
    record."""

    def __init__(self, opened: int, times: int) -> None:
        self.opened, self.times, self.asked = opened, times, 0

    async def lines(self, where: str, **query: Any) -> AsyncIterator[tuple[bytes, datetime | None]]:
        self.asked += 1
        if self.asked <= self.opened:
            yield b"", datetime.now(UTC)
        if self.asked <= self.times:
            raise Unreachable("control can't be reached", code="unreachable")
        yield RECORD, datetime.now(UTC)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_stream, "LONGEST_PAUSE", 0.001)


async def first(control: AwayControl, **query: str) -> bytes:
    async for part in record_stream.parts(control, dict(query)):
        return part.raw
    raise AssertionError("it has ended without a record")


async def test_a_view_that_was_open_waits_for_a_control_that_starts_again() -> None:
    """As after an upgrade, or a restart of the machine with its databases."""
    assert await first(AwayControl(opened=1, times=25), follow="true") == RECORD
    gone = AwayControl(opened=1, times=1000)
    with pytest.raises(Unreachable):
        await first(gone, follow="true")
    assert gone.asked == record_stream.REOPENINGS


async def test_a_quiet_view_outlives_any_number_of_interruptions() -> None:
    """Nobody wrote a line meanwhile."""
    assert await first(AwayControl(opened=100, times=100), follow="true") == RECORD


@pytest.mark.parametrize(("opened", "query"), [(0, {"follow": "true"}), (0, {}), (9, {})])
async def test_others_are_told_soon(opened: int, query: dict[str, str]) -> None:
    gone = AwayControl(opened, times=1000)
    with pytest.raises(Unreachable):
        await first(gone, **query)
    assert gone.asked == ATTEMPTS
