"""A trouble that goes on is some lines of log, not one for each failure."""

import logging
from collections.abc import Iterator

import pytest

from control.log_throttle import QUIET, REMIND_EVERY, Outage


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Its own lines alone: what an earlier test has left behind may log as it is collected."""
    with caplog.filtering(logging.Filter("test.outages")):
        yield caplog


@pytest.fixture
def time() -> list[float]:
    return [0.0]


@pytest.fixture
def outage(time: list[float]) -> Outage:
    return Outage(logging.getLogger("test.outages"), "the bell can't be rung", lambda: time[0])


def test_a_line_at_the_start_and_one_a_minute(
    outage: Outage, time: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(int(REMIND_EVERY) * 2 * 2 + 1):  # two a second, for two minutes
        outage.failed("no rope")
        time[0] += 0.5
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert caplog.messages[0] == "the bell can't be rung: no rope"
    assert "120 times more in 60 s" in caplog.messages[1]
    assert "no rope" in caplog.messages[2]


def test_it_is_over_after_a_success_that_no_failure_follows(
    outage: Outage, time: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outage.worked()
    assert not caplog.messages
    outage.failed("no rope")
    for _ in range(20):  # it works now and then
        time[0] += QUIET / 2
        outage.worked()
        outage.failed("no rope")
    assert len(caplog.messages) == 1
    time[0] += QUIET
    outage.worked()
    outage.worked()
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("over: the bell can't be rung")
    outage.failed("the rope is cut")
    assert caplog.messages[2] == "the bell can't be rung: the rope is cut"
