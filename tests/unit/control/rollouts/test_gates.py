"""What gates say of the calls that were counted: passed, failed or unknown, with the values that they saw."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import histogram
from control.rollouts import gates
from control.rollouts.gates import GateVerdict
from control.rollouts.policy import Gate, limit_of
from control.telemetry.call_history import CallTally

NOTHING = CallTally()


def tally(calls: int, errors: int = 0, seconds: float = 0.01, code: str = "guest_trap") -> CallTally:
    return CallTally({code: errors} if errors else {}, {histogram.bucket(seconds): calls} if calls else {})


def judged(gate: Gate, now: CallTally, before: CallTally = NOTHING) -> GateVerdict:
    return gates.judge(gate, limit_of(gate), now, before)


RATIO = Gate(metric="error_ratio", than_before="1.2x", at_least_calls=200)
FIXED = Gate(metric="error_ratio", at_most="1%", at_least_calls=200)
SLOW = Gate(metric="p99", than_before="2x", at_least_calls=10)

tallies = st.builds(
    lambda calls, share, seconds: tally(calls, int(calls * share), seconds),
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.floats(0.0001, 20),
)
some_gates = st.builds(
    lambda metric, factor, most, least: Gate(
        metric=metric,
        than_before=f"{factor}x" if factor else None,
        at_most=None if factor and most is None else f"{most or 1}{'%' if metric == 'error_ratio' else 'ms'}",
        at_least_calls=least,
    ),
    st.sampled_from(["error_ratio", "p99"]),
    st.one_of(st.none(), st.integers(1, 5)),
    st.one_of(st.none(), st.integers(1, 100)),
    st.integers(1, 1000),
)


@given(some_gates, tallies, tallies)
def test_too_few_calls_or_no_hour_before_never_pass(gate: Gate, now: CallTally, before: CallTally) -> None:
    verdict = judged(gate, now, before)
    if now.calls < gate.at_least_calls:
        assert verdict.outcome == "unknown"
    elif gate.than_before and not before.calls:
        assert verdict.outcome != "passed"
    else:
        assert verdict.outcome != "unknown"
    assert verdict.calls == now.calls
    assert verdict.why


@given(some_gates, tallies, tallies)
def test_an_answer_agrees_with_the_values_that_it_shows(gate: Gate, now: CallTally, before: CallTally) -> None:
    verdict = judged(gate, now, before)
    if verdict.outcome == "unknown":
        return
    assert verdict.measured is not None
    assert verdict.allowed is not None
    assert (verdict.measured <= verdict.allowed * (1 + 1e-9)) == (verdict.outcome == "passed")
    assert (verdict.before is None) == (before.calls == 0)


@given(some_gates, tallies, tallies, st.integers(1, 50))
def test_more_errors_never_turn_a_failure_into_a_pass(gate: Gate, now: CallTally, before: CallTally, more: int) -> None:
    worse = CallTally(dict(now.outcomes), dict(now.times))
    worse.outcomes["guest_trap"] = min(now.errors + more, now.calls)
    if judged(gate, now, before).outcome == "failed":
        assert judged(gate, worse, before).outcome == "failed"


@given(some_gates, tallies, tallies, st.integers(1, 5))
def test_of_two_limits_the_stricter_holds(gate: Gate, now: CallTally, before: CallTally, factor: int) -> None:
    most = gate.at_most or ("5%" if gate.metric == "error_ratio" else "5ms")
    both = Gate(metric=gate.metric, than_before=f"{factor}x", at_most=most, at_least_calls=gate.at_least_calls)
    outcomes = {
        judged(Gate(metric=gate.metric, at_most=most, at_least_calls=gate.at_least_calls), now, before).outcome,
        judged(
            Gate(metric=gate.metric, than_before=f"{factor}x", at_least_calls=gate.at_least_calls), now, before
        ).outcome,
    }
    worst = "failed" if "failed" in outcomes else "unknown" if "unknown" in outcomes else "passed"
    assert judged(both, now, before).outcome == worst


@given(st.integers(200, 100_000), st.integers(1, 1_000_000))
def test_a_single_error_fails_no_step(calls: int, before: int) -> None:
    verdict = judged(RATIO, tally(calls, 1), tally(before))
    assert verdict.outcome == "passed"
    assert verdict.allowed is not None
    too_many = int(verdict.allowed * calls + 0.001) + 1
    assert judged(RATIO, tally(calls, too_many), tally(before)).outcome == "failed"


def test_an_hour_with_few_calls_and_no_errors_is_no_licence_to_fail() -> None:
    # 1 in 3 would be a third.
    assert judged(RATIO, tally(200, 2), tally(3)).outcome == "failed"
    assert judged(RATIO, tally(200, 1), tally(3)).outcome == "passed"


def test_error_ratio_is_compared_with_the_hour_before() -> None:
    verdict = judged(RATIO, tally(1000, 12), tally(2000, 20))
    assert verdict.outcome == "passed"
    assert (verdict.measured, verdict.before) == (0.012, 0.01)
    assert verdict.allowed == pytest.approx(0.012)
    verdict = judged(RATIO, tally(1000, 13), tally(2000, 20))
    assert verdict.outcome == "failed"
    assert verdict.why == ("1.3% of 1,000 calls failed; at most 1.2% is allowed, and in the hour before it was 1%")


def test_calls_whose_client_has_gone_are_no_errors() -> None:
    assert judged(FIXED, tally(200, 100, code="client_gone")).outcome == "passed"


def test_at_most_is_taken_literally() -> None:
    nought = Gate(metric="error_ratio", at_most="0%", at_least_calls=200)
    assert judged(nought, tally(200)).outcome == "passed"
    assert judged(nought, tally(200, 1)).outcome == "failed"


def test_p99() -> None:
    verdict = judged(SLOW, tally(100, seconds=0.1), tally(100, seconds=0.02))
    assert verdict.outcome == "failed"
    assert verdict.measured == pytest.approx(0.1, rel=0.05)
    assert verdict.allowed == pytest.approx(0.04, rel=0.05)
    assert judged(SLOW, tally(100, seconds=0.03), tally(100, seconds=0.02)).outcome == "passed"
    assert "ms" in verdict.why


def test_sentences_for_what_is_unknown() -> None:
    assert judged(RATIO, tally(0)).why == "0 calls in this step; it takes 200 to say"
    assert judged(RATIO, tally(1, 1)).why == "1 call in this step, with 100% so far; it takes 200 to say"
    assert judged(RATIO, tally(300)).why == ("0% of 300 calls failed, and nothing is known of the hour before")
    of_function = Gate(metric="p99", function="orders", at_most="2s", at_least_calls=1)
    assert judged(of_function, tally(5, seconds=3)).why.startswith("the p99 of 5 calls of orders is ")


def test_gates_in_words() -> None:
    assert gates.in_words(RATIO) == "error_ratio at most 1.2x of before"
    both = Gate(metric="p99", function="orders", than_before="2x", at_most="50ms")
    assert gates.in_words(both) == "p99 of orders at most 2x of before and 50ms"
    assert gates.in_words(Gate(webhook="https://u.example.com/secret?key=1")) == "webhook at u.example.com"
