"""Which clock control goes by: its machine's, the database's, or neither."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from control.clock import EARLIEST, SystemClock

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
BATTERY = datetime(2000, 1, 1, tzinfo=UTC)
"""What a machine's clock says after a start without one."""


@pytest.mark.parametrize(
    ("machine", "database", "now", "said"),
    [
        (NOW, NOW, NOW, ""),
        (NOW + HOUR, NOW, NOW, "3600 s ahead of the database's"),
        (NOW - HOUR, NOW, NOW, "3600 s behind the database's"),
        (BATTERY, NOW, NOW, "behind the database's"),
        (NOW, BATTERY, NOW, "the database's clock says 2000-01-01 00:00 UTC, which can't be right"),
        (BATTERY, BATTERY, None, ""),
        (BATTERY, datetime.fromtimestamp(EARLIEST, UTC) - HOUR, None, ""),
    ],
)
def test_the_clock_at_a_start(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: datetime,
    database: datetime,
    now: datetime | None,
    said: str,
) -> None:
    monkeypatch.setattr(time, "time", machine.timestamp)
    clock = SystemClock()
    for _ in range(2):
        clock.compare(database, clock.now())
    assert ("this machine's clock says 2000-01-01 00:00 UTC" in clock.doubt) == (now is None)
    assert now is None or abs(clock.now() - now) < timedelta(seconds=5)
    assert [said in line for line in caplog.messages] == [True] * bool(said)
    # Once both are right, it is so at once.
    caplog.clear()
    caplog.set_level("INFO")
    monkeypatch.setattr(time, "time", NOW.timestamp)
    clock.compare(NOW, clock.now())
    assert clock.doubt == ""
    assert abs(clock.now() - NOW) < timedelta(seconds=5)
    assert ["agree again" in line for line in caplog.messages] == [True] * bool(said)


def test_a_time_that_was_known_is_known_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(time, "time", NOW.timestamp)
    clock = SystemClock()
    clock.compare(NOW, clock.now())
    monkeypatch.setattr(time, "time", BATTERY.timestamp)
    clock.compare(BATTERY, clock.now())
    assert clock.doubt == ""
    assert abs(clock.now() - NOW) < timedelta(seconds=5)
    assert "going by the time that has passed" in caplog.text
