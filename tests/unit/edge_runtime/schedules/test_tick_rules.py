"""Which ticks are due: after stops, beside one that runs, with jitter, and by clocks that jump."""

from datetime import UTC, datetime, timedelta

import pytest

from control.protocol.manifest import Manifest
from edge_runtime.schedules.tick_rules import KEPT, PATIENCE, Line, next_to_run

DAY = datetime(2026, 12, 3, tzinfo=UTC)


def at(text: str, days: int = 0) -> int:
    hours, minutes = text.split(":")
    return int((DAY + timedelta(days=days, hours=int(hours), minutes=int(minutes))).timestamp())


def line(cron: str, ended: set[int], **fields: object) -> Line:
    made = Line("f", cron, ended=ended)
    made.follow(Manifest(schedule=[cron], **fields))  # type: ignore[arg-type]
    return made


def claimed(one: Line, now: float) -> list[str]:
    one.claim(now)
    return [datetime.fromtimestamp(tick, UTC).strftime("%d %H:%M") for tick in one.waiting]


@pytest.mark.parametrize(
    ("missed", "now", "ticks"),
    [
        # On time, and within the patience.
        ("skip", at("01:00"), ["03 01:00"]),
        ("skip", at("01:00") + PATIENCE, ["03 01:00"]),
        ("skip", at("01:00") + PATIENCE + 1, []),
        ("skip", at("03:02"), ["03 03:00"]),
        ("once", at("03:30"), ["03 03:00"]),
        ("all", at("03:30"), ["03 01:00", "03 02:00", "03 03:00"]),
        # A day and more.
        ("skip", at("00:30", 2), []),
        ("once", at("00:30", 2), ["05 00:00"]),
        ("all", at("00:30", 2), ["04 21:00", "04 22:00", "04 23:00", "05 00:00"]),
        ("all", at("00:59"), []),
    ],
)
def test_ticks_that_were_missed_run_by_the_rule_for_them(missed, now, ticks):
    most = {"missed_most": 4} if missed == "all" else {}
    one = line("0 * * * *", {at("00:00")}, missed=missed, **most)
    assert claimed(one, now) == ticks
    # They are claimed once.
    assert claimed(one, now) == ticks
    assert one.look == now - now % 3_600 + 3_600


def test_a_tick_that_is_due_while_one_runs_waits_and_the_last_one_stands_for_all():
    one = line("* * * * *", {at("00:00")}, missed="once")
    assert claimed(one, at("00:01")) == ["03 00:01"]
    one.running = one.waiting.pop(0)
    assert claimed(one, at("00:02")) == ["03 00:02"]
    assert claimed(one, at("00:05")) == ["03 00:05"]
    assert not next_to_run([one], 5)
    one.end(one.running)
    one.running = None
    assert next_to_run([one], 5) == [one]


def test_of_a_function_one_tick_runs_at_a_time_and_the_oldest_begins_first():
    lines = [line("* * * * *", set()) for _ in range(4)]
    for number, (one, name) in enumerate(zip(lines, "abba", strict=True)):
        one.function, one.waiting = name, [100 - number]
    assert next_to_run(lines, 5) == [lines[3], lines[2]]
    assert next_to_run(lines, 1) == [lines[3]]
    assert next_to_run(lines, 0) == []
    lines[0].running = 7
    assert next_to_run(lines, 5) == [lines[2]]


def test_jitter_is_within_its_bounds_and_the_same_for_a_tick():
    one = line("0 * * * *", {at("00:00")}, jitter_seconds=600)
    begins = {one.due_at(tick) - tick for tick in range(at("00:00"), at("00:00", 4), 3_600)}
    assert len(begins) > 90
    assert 0 <= min(begins) < 60
    assert 540 < max(begins) <= 600
    due = one.due_at(at("01:00"))
    assert claimed(one, due - 0.01) == []
    assert one.look == due
    assert claimed(one, due) == ["03 01:00"]


def test_a_clock_that_begins_in_2000_goes_on_there_and_nothing_comes_twice_when_it_jumps():
    done = {at("00:00"), at("01:00")}
    one = line("0 * * * *", set(done), missed="all")
    then = datetime(2000, 1, 1, 0, 30, tzinfo=UTC).timestamp()
    assert claimed(one, then) == []
    assert claimed(one, then + 3_600) == ["01 01:00"]
    one.waiting.clear()
    one.end(int(then + 1_800))
    # The clock is set: what was missed since the last that ended before it counts.
    assert claimed(one, at("03:30")) == ["03 02:00", "03 03:00"]
    # Even where it stood at its wrong time for long.
    one.waiting.clear()
    for hour in range(500):
        one.end(int(then) - 1_800 + hour * 3_600)
    assert done < one.ended
    assert len(one.ended) <= 2 * KEPT + 1
    assert claimed(one, at("03:30")) == ["03 02:00", "03 03:00"]


def test_what_the_file_says_counts_unless_the_clock_is_behind_all_of_it():
    one = line("0 * * * *", {at("00:00"), at("01:00"), at("02:00")}, missed="all")
    one.learn({at("00:00")}, at("02:30"))
    assert claimed(one, at("02:30")) == ["03 01:00", "03 02:00"]
    one = line("0 * * * *", {at("00:00", 2)}, missed="all")
    assert claimed(one, at("00:30")) == []
    one.learn({at("00:00", 2)}, at("01:30"))
    assert claimed(one, at("01:30")) == ["03 01:00"]


def test_after_a_clock_that_was_ahead_a_line_goes_on_from_now():
    one = line("0 * * * *", {at("00:00", 36_500), at("01:00", 36_500)}, missed="all")
    assert claimed(one, at("03:00")) == []
    assert one.look == at("04:00")


def test_a_clock_that_is_set_back_makes_no_remembered_tick_come_again():
    one = line("* * * * *", {at("00:00")}, missed="all")
    for minute in range(1, 20):
        one.end(at(f"00:{minute}"))
    assert claimed(one, at("00:10")) == []
    # Those of now on are due, and are found to have ended where that is remembered.
    assert one.look == at("00:11")


def test_where_clocks_are_changed_a_daily_tick_is_one_a_day():
    one = line("30 2 * * *", set(), missed="all", timezone="Europe/Berlin")
    start = datetime(2026, 10, 20, tzinfo=UTC)
    one.ended = {int(start.timestamp())}
    assert claimed(one, (start + timedelta(days=8)).timestamp()) == [
        *("20 00:30", "21 00:30", "22 00:30", "23 00:30", "24 00:30", "25 00:30", "26 01:30", "27 01:30")
    ]


def test_calls_after_releases_are_the_files_to_say():
    one = Line("f", "", waiting=[at("01:00")])
    assert claimed(one, at("05:00")) == ["03 01:00"]
    assert (one.next_run, one.overdue(at("01:30"))) == (at("01:00"), 1_800)
