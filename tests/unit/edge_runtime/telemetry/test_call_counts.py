"""What is counted of a function's calls, and the few bytes in which control is told it."""

import base64
import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import histogram, wire
from edge_runtime.dispatch.served_functions import MOST_RELEASES, RELEASES, Tally
from edge_runtime.telemetry.call_counts import CallCounts, row

times = st.dictionaries(st.integers(0, histogram.LONGER), st.integers(1, 2**40), min_size=1)
outcomes = st.dictionaries(st.sampled_from(["ok", "code_of_a_later_version", *wire.OUTCOMES]), st.integers(1, 2**40))


def call(counts: CallCounts, outcome: str = "ok", seconds: float = 0.001) -> None:
    counts.outcomes[outcome] = counts.outcomes.get(outcome, 0) + 1
    bucket = histogram.bucket(seconds)
    counts.times[bucket] = counts.times.get(bucket, 0) + 1
    counts.total += seconds


@given(st.integers(0, wire.MOST_FUNCTIONS - 1), st.integers(1, 2**31 - 1), outcomes, times)
def test_a_functions_numbers_take_64_bytes_of_a_poll_whatever_they_are(index, release, ended, took):
    made = row(index, release, ended, took)
    size = len(msgspec.msgpack.encode(made))
    assert len(base64.b64encode(bytes(size))) <= 64
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=wire.FunctionNumbers) == made
    assert sum(histogram.unpack(made.seconds).values()) == sum(took.values())
    assert sum(made.outcomes[1::2]) == sum(count for outcome, count in ended.items() if outcome != "ok")


def test_a_usual_minute_says_which_errors_there_were_and_is_fine():
    rng = random.Random(1)
    counts = CallCounts(3, 12)
    for number in range(600):
        call(counts, "guest_trap" if number % 50 == 0 else "ok", rng.lognormvariate(-6, 0.4))
    told = counts.take()
    assert told is not None
    assert (told.index, told.release) == (3, 12)
    assert told.outcomes == [wire.OUTCOMES.index("guest_trap"), 12]
    assert told.seconds[0] <= 1


def test_an_outcome_that_control_has_no_number_for_is_other():
    assert row(0, 1, {"code_of_a_later_version": 2, "ok": 5}, {9: 7}).outcomes == [0, 2]


def test_each_call_is_told_once():
    counts = CallCounts(0, 1)
    assert counts.take() is None
    call(counts)
    call(counts, "time_limit", 5.0)
    assert not counts.all_told
    first = counts.take()
    assert first is not None
    assert (first.outcomes, sum(histogram.unpack(first.seconds).values())) == (
        [wire.OUTCOMES.index("time_limit"), 1],
        2,
    )
    assert counts.take() is None
    assert counts.all_told
    call(counts)
    again = counts.take()
    assert again is not None
    assert (again.outcomes, histogram.unpack(again.seconds)) == ([], {histogram.bucket(0.001): 1})
    assert (counts.calls, counts.failed) == (3, 1)


def test_a_client_that_goes_away_is_no_failure():
    counts = CallCounts(0, 1)
    call(counts, "client_gone")
    call(counts, "answer_5xx")
    assert (counts.calls, counts.failed) == (2, 1)


def test_the_newest_releases_are_kept_apart_and_nothing_is_lost():
    tally = Tally("f")
    for release in range(1, 8):
        counts = tally.of_release(0, release)
        assert tally.of_release(0, release) is counts
        call(counts)
        assert counts.take() is not None
    assert list(tally.counts) == [6, 7]
    assert len(tally.counts) == RELEASES
    assert tally.outcomes == {"ok": 7}
    assert (tally.all.calls, sum(tally.all.times.values())) == (7, 7)


def test_what_control_was_not_told_yet_is_kept_for_a_while():
    tally = Tally("f")
    for release in range(1, 10):
        call(tally.of_release(0, release))
        assert len(tally.counts) <= MOST_RELEASES
    assert list(tally.counts) == [6, 7, 8, 9]
    assert tally.all.calls == 9


def test_another_list_of_functions_under_the_same_number_is_counted_apart():
    tally = Tally("f")
    call(tally.of_release(0, 1))
    call(counts := tally.of_release(1, 1))
    assert counts.calls == 1
    assert tally.all.calls == 2
