"""Which cron lines are taken, and when their ticks are, also where clocks are changed."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import cron

BERLIN = cron.zone("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def told(ticks: list[datetime]) -> list[str]:
    return [f"{tick:%d %H:%M}" for tick in ticks]


@pytest.mark.parametrize(
    "line",
    [
        *("* * * * *", "*/5 * * * *", "0 0 * * 0", "0 0 * * 7", "0 22 * * MON-FRI", "0 0 1,15 jan,JUL *"),
        *("0 0 29 2 *", "15-45/10 8-18 * * *", "5/15 * * * *", "0 0 13 * 5", "0 0 31 1,2 *"),
    ],
)
def test_a_line_of_five_fields_is_taken(line):
    cron.check(line)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 * * * * *", "leave out the seconds"),
        ("0 3 * *", "isn't five fields"),
        ("", "the empty line"),
        ("0 0 L * *", "standard cron has no L"),
        ("0 0 LW * *", "standard cron has no LW"),
        ("0 0 15W * *", "standard cron has no W"),
        ("0 0 * * 5L", "standard cron has no L"),
        ("0 0 * * 1#2", "standard cron has no #"),
        ("0 0 ? * 1", "standard cron has no ?; write *"),
        ("@daily", "write 0 0 * * *"),
        ("@reboot", "on_release"),
        ("60 * * * *", "60 in 60 * * * * is no minute (0 to 59)"),
        ("0 24 * * *", "is no hour (0 to 23)"),
        ("0 0 32 * *", "32 in 0 0 32 * * is no day of the month"),
        ("0 0 0 * *", "is no day of the month"),
        ("0 0 * 13 *", "is no month"),
        ("0 0 * * 8", "is no day of the week"),
        ("*/0 * * * *", "is no minute"),
        ("5-1 * * * *", "is no minute"),
        ("a * * * *", "is no minute"),
        ("٣ * * * *", "is no minute"),
        ("0 0 31 2,4 *", "a day that never comes"),
        ("0  3 * * *", "single spaces: 0 3 * * *"),
        ("0 3 * * *\n", "single spaces"),
    ],
)
def test_what_is_no_such_line_is_refused_with_what_to_do(line, why):
    with pytest.raises(cron.CronUnfit) as refused:
        cron.check(line)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("line", "ticks"),
    [
        # Clocks went from 02:00 to 03:00 at 01:00 UTC.
        ("30 2 * * *", ["29 01:30", "30 01:00", "31 00:30"]),
        ("15,45 2 * * *", ["29 01:15", "29 01:45", "30 01:00", "31 00:15"]),
        ("0 3 * * *", ["29 02:00", "30 01:00", "31 01:00"]),
    ],
)
def test_in_the_hour_that_is_missing_a_line_is_due_once_right_after_it(line, ticks):
    assert told(list(islice(cron.ticks(line, BERLIN, at("2025-03-29T00:00:00")), len(ticks)))) == ticks


@pytest.mark.parametrize(
    ("line", "ticks"),
    [
        # Clocks went from 03:00 back to 02:00 at 01:00 UTC.
        ("30 2 * * *", ["25 00:30", "26 00:30", "27 01:30"]),
        ("0 3 * * *", ["25 01:00", "26 02:00", "27 02:00"]),
    ],
)
def test_in_the_hour_that_comes_twice_a_line_is_due_once(line, ticks):
    assert told(list(islice(cron.ticks(line, BERLIN, at("2025-10-25T00:00:00")), len(ticks)))) == ticks
    # Also seen from within the second of the two.
    assert told([next(cron.ticks(line, BERLIN, at("2025-10-26T01:15:00")))]) == [
        next(tick for tick in ticks if tick > "26 01:15")
    ]


def test_a_line_that_is_due_in_each_hour_is_due_in_each_that_there_is():
    day = list(islice(cron.ticks_before("0 * * * *", BERLIN, at("2025-10-26T22:00:00")), 25))
    assert all(later - tick == timedelta(hours=1) for later, tick in pairwise(day))


LINES = st.sampled_from(
    ["*/7 * * * *", "30 2 * * *", "15,45 2 * * *", "0 3 * * *", "*/20 2 * * *", "0 */2 * * *", "1 0 * * 0", "0 0 1 * *"]
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"])
TIMES = st.datetimes(datetime(1999, 12, 31), datetime(2030, 1, 1)).map(lambda time: time.replace(tzinfo=UTC))


@given(LINES, ZONES, TIMES | st.sampled_from([at("2025-03-30T01:30:00"), at("2025-10-26T00:59:00")]))
def test_backwards_there_are_the_same_ticks(line, name, until):
    zone, start = cron.zone(name), until - timedelta(days=3)
    forward = [tick for tick in islice(cron.ticks(line, zone, start), 700) if tick <= until]
    backward = []
    for tick in cron.ticks_before(line, zone, until):
        if tick <= start:
            break
        backward.append(tick)
    assert backward[::-1] == forward
    assert all(not tick.second and not tick.microsecond for tick in forward)


def test_the_gap_of_a_line_is_the_shortest():
    assert (cron.shortest_gap("*/5 * * * *"), cron.shortest_gap("0 3,4 * * *")) == (300, 3_600)
