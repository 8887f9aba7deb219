"""When a function is cut off, for how long, and when it is let go again."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.dispatch.breaker import CALM, FIRST, LONGEST, RULES, TRIAL_WAIT, WINDOW, Breaker


def call(breaker: Breaker, died: bool, now: float) -> bool:
    """One call, where it can go; whether it went."""
    which = object()
    if breaker.left(which, now):
        return False
    if died:
        breaker.died(which, now)
    else:
        breaker.calls += 1
        breaker.ended(which, now)
    return True


def opened(deaths: int = 5, now: float = 100.0) -> Breaker:
    breaker = Breaker()
    for _ in range(deaths):
        assert call(breaker, died=True, now=now)
    return breaker


def test_five_deaths_in_a_row_open_it_for_a_second() -> None:
    assert opened(4).closed
    breaker = opened()
    assert (breaker.state, breaker.opened) == ("open", 1)
    assert breaker.left(object(), 100.0) == 1
    assert breaker.left(object(), 100.99) == 1
    assert breaker.left(object(), 101.0) == 0


def test_a_bad_call_among_many_good_ones_does_not_open_it() -> None:
    breaker = Breaker()
    for number in range(30_000):
        assert call(breaker, died=number % 1000 == 0, now=100 + number / 1000)


def test_a_tenth_of_the_calls_is_too_many_in_the_end() -> None:
    breaker = Breaker()
    went = [call(breaker, died=number % 9 == 0, now=100 + number / 1000) for number in range(400)]
    assert went.index(False) == 19 * 9 + 1


def test_deaths_long_ago_do_not_count() -> None:
    breaker = Breaker()
    for number in range(50):
        assert call(breaker, died=True, now=number * (WINDOW / 3))
    assert breaker.closed


def test_one_call_tries_and_others_wait_for_it() -> None:
    breaker = opened()
    first, second = object(), object()
    assert breaker.left(first, 101.0) == 0
    assert breaker.state == "half_open"
    assert breaker.left(second, 101.0) == TRIAL_WAIT
    # It may ask again, as when it is dispatched again.
    assert breaker.left(first, 101.5) == 0
    breaker.untried(second)
    assert breaker.left(second, 101.5) == TRIAL_WAIT
    # It ended for nothing of its function's: the next one tries.
    breaker.untried(first)
    assert breaker.left(second, 101.5) == 0
    breaker.ended(second, 102.0)
    assert breaker.closed
    assert breaker.left(object(), 102.0) == 0


def test_each_time_is_twice_as_long_up_to_the_longest() -> None:
    breaker, now, times = opened(), 100.0, []
    for _ in range(9):
        times.append(breaker.until - now)
        now = breaker.until
        assert call(breaker, died=True, now=now)
    assert times == [FIRST, 2, 4, 8, 16, 32, LONGEST, LONGEST, LONGEST]


def test_it_begins_small_again_only_after_a_calm_while() -> None:
    for pause, expected in ((CALM - 1, 2 * FIRST), (CALM + 1, FIRST)):
        breaker = opened()
        assert call(breaker, died=False, now=101.0)
        now = 101.0 + pause
        for _ in range(5):
            assert call(breaker, died=True, now=now)
        assert breaker.until - now == expected


def test_calls_that_ran_when_it_was_opened_change_nothing() -> None:
    breaker = opened()
    late = object()
    assert not breaker.died(late, 100.5)
    breaker.ended(late, 100.6)
    assert (breaker.state, breaker.until, breaker.opened) == ("open", 101.0, 1)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.001, 5.0)), max_size=300))
def test_whatever_happens(calls: list[tuple[bool, float]]) -> None:
    """Open times have a least and a longest, it opens only on too many deaths, and one may always try in the end."""
    breaker, now, deaths, went = Breaker(), 0.0, 0, 0
    for died, pause in calls:
        now += pause
        was, before = breaker.closed, breaker.opened
        if call(breaker, died, now):
            went += 1
            deaths += died
            if breaker.opened > before:
                assert died
                assert FIRST - 1e-6 <= breaker.until - now <= LONGEST + 1e-6
                assert not was or deaths >= RULES[0][0]
            elif not was:
                # It was the trial.
                assert breaker.closed is not died
        else:
            assert not was
            assert 1 <= breaker.left(object(), now) <= LONGEST
    assert breaker.left(object(), now + LONGEST) == 0
    assert breaker.calls == went


def test_the_rules_grow_in_number_and_fall_in_share() -> None:
    for (few, high), (many, low) in pairwise(RULES):
        assert few < many
        assert high > low
