"""What happens next in a rollout, case by case. Whole fleets are in tests/simulation/test_rollout_fleets.py."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.rollouts import rules
from control.rollouts.policy import AT_ONCE, Policy, Rules, rules_of
from control.rollouts.rules import GroupNode, GroupNodes, Outcome, RolloutDecision, RolloutPosition, State

NOW = datetime(2026, 6, 3, 12, tzinfo=UTC)
"""A Wednesday."""
MINUTE = timedelta(minutes=1)
ID = "7f6f2f5e-9c39-4a1e-8a66-0d0f4dd1a001"


def policy(**fields: Any) -> Rules:
    return rules_of(msgspec.convert({"bake": "10m", **fields}, Policy))


def at_step(step: int, **fields: Any) -> RolloutPosition:
    """A rollout whose step began an hour ago."""
    then = NOW - 60 * MINUTE
    return replace(RolloutPosition("running", step, then, "", then, "", False, 0, then), **fields)


def node(number: int, **fields: Any) -> GroupNode:
    return replace(GroupNode(f"node {number}", "", online=True, rehearses=True), **fields)


def nodes(count: int, **fields: Any) -> list[GroupNode]:
    return [node(number, **fields) for number in range(count)]


def flipped(ago: timedelta = 30 * MINUTE, step: int = 1) -> dict[str, Any]:
    """A node that its step has brought to the release."""
    return {"step": step, "reached": NOW - ago}


def decide(
    position: RolloutPosition,
    policy: Rules,
    there: Sequence[GroupNode],
    gates: Sequence[Outcome] = (),
    started: int = -1,
) -> RolloutDecision:
    begun = sum(each.step is not None for each in there) if started < 0 else started
    return rules.decide(position, policy, GroupNodes(there, begun, ID), gates, NOW)


# The rehearsal


def test_a_rollout_begins_with_its_rehearsal_or_its_first_step() -> None:
    for only in (False, True):
        begun = rules.first(policy(), rehearse=not only, rehearsal_only=only, now=NOW)
        assert (begun.state, begun.step, begun.waits_for, begun.step_since) == ("running", 0, "rehearsal", NOW)
        assert begun.rehearsal_only == only
    begun = rules.first(policy(), rehearse=False, rehearsal_only=False, now=NOW)
    assert (begun.state, begun.step, begun.step_since, begun.measured_from) == ("running", 1, NOW, NOW)


def test_the_rehearsal_waits_for_online_nodes_that_can_try_it() -> None:
    rehearsed = policy(rehearsal_time="90m")
    there = [node(1, rehearsed="passed"), node(2), node(3, online=False), node(4, rehearses=False)]
    waiting = decide(at_step(0), rehearsed, there)
    assert (waiting.position.state, waiting.position.waits_for) == ("running", "rehearsal")
    assert waiting.position.reason == "it waits for 1 node to rehearse it"
    there[1] = node(2, rehearsed="passed")
    assert decide(at_step(0), rehearsed, there).position.step == 1


@pytest.mark.parametrize("waits_for", ["failed", "unknown"])
def test_what_a_rehearsal_has_found_is_accepted_by_resuming(waits_for: rules.Waits) -> None:
    stopped = at_step(0, state="paused", waits_for=waits_for)
    assert rules.resumed(stopped, policy(), 0, NOW).step == 1


def test_the_rehearsal_ends_with_its_time() -> None:
    there = [node(1, rehearsed="passed"), node(2)]
    assert decide(at_step(0), policy(rehearsal_time="61m"), there).position.waits_for == "rehearsal"
    assert decide(at_step(0), policy(rehearsal_time="60m"), there).position.step == 1
    ended = decide(at_step(0), policy(rehearsal_time="60m", max_unknown="49%"), there).position
    assert (ended.state, ended.waits_for) == ("paused", "unknown")


def test_a_rehearsal_that_was_paused_has_its_time_again() -> None:
    paused = at_step(0, state="paused", waits_for="operator", rehearsal_only=True)
    going = rules.resumed(paused, policy(), 0, NOW)
    assert (going.state, going.rehearsal_only) == ("running", True)
    assert decide(going, policy(rehearsal_time="10m"), nodes(1)).position.waits_for == "rehearsal"


def test_one_failed_rehearsal_stops_the_release_and_starts_nobody() -> None:
    there = [*nodes(99, rehearsed="passed"), node(99, rehearsed="failed")]
    stopped = decide(at_step(0), policy(max_failed="50%"), there)
    assert (stopped.position.state, stopped.position.waits_for, stopped.start) == ("paused", "failed", ())
    assert stopped.position.reason == "the rehearsal failed on 1 node of 100"
    stopped = decide(at_step(0), policy(on_failure="rollback"), there)
    # Nothing has changed anywhere, so nothing is rolled back.
    assert (stopped.position.state, stopped.roll_back) == ("aborted", False)


@pytest.mark.parametrize(
    ("max_unknown", "unknown", "goes_on"),
    [("0%", 0, True), ("0%", 1, False), ("19%", 1, True), ("19%", 2, False), ("2", 2, True), ("2", 3, False)],
)
def test_a_policy_says_on_how_many_nodes_the_rehearsal_may_be_unknown(
    max_unknown: str, unknown: int, goes_on: bool
) -> None:
    missing = [node(0, rehearsed="unknown"), node(1, online=False), node(2, rehearses=False)][:unknown]
    there = [*missing, *(node(n, rehearsed="passed") for n in range(unknown, 10))]
    decided = decide(at_step(0), policy(max_unknown=max_unknown), there).position
    assert (decided.step == 1, decided.waits_for == "unknown") == (goes_on, not goes_on)


def test_a_rehearsal_that_passed_nowhere_isnt_passed_though_all_may_be_unknown() -> None:
    stopped = decide(at_step(0), policy(max_unknown="100%"), nodes(3, rehearsed="unknown")).position
    assert (stopped.state, stopped.waits_for) == ("paused", "unknown")
    # Nobody could have tried: older nodes block nothing.
    assert decide(at_step(0), policy(), nodes(3, rehearses=False)).position.step == 1
    assert decide(at_step(0), policy(), []).position.step == 1
    # If only that was wanted, it hasn't passed.
    alone = decide(at_step(0, rehearsal_only=True), policy(), nodes(3, rehearses=False)).position
    assert (alone.state, alone.waits_for, alone.reason) == ("paused", "unknown", "none of 3 nodes could try it")


def test_where_all_are_offline_the_first_ones_back_rehearse_it() -> None:
    hour = policy(rehearsal_time="10m")
    for only in (False, True):
        waiting = decide(at_step(0, rehearsal_only=only), hour, nodes(3, online=False)).position
        assert (waiting.state, waiting.step, waiting.waits_for) == ("running", 0, "unknown")
        assert waiting.reason == "all nodes of the group are offline: the first ones back rehearse it"
    # Its time begins then, however long they were away.
    assert rules.rehearsal_left(waiting, hour, NOW) == 10 * MINUTE
    back = decide(waiting, hour, [node(0), *nodes(3, online=False)[1:]]).position
    assert (back.waits_for, back.measured_from) == ("rehearsal", NOW)
    assert rules.rehearsal_left(back, hour, NOW + 9 * MINUTE) == MINUTE
    # Its result counts even before it is known to be online.
    assert (
        decide(at_step(0), hour, [node(0, online=False, rehearsed="passed"), node(1, online=False)]).position.step == 1
    )
    # Without a rehearsal, they are started when they are back.
    away = decide(at_step(1), policy(), nodes(3, online=False)).position
    assert away.reason == "all nodes of the group are offline: they are started when they are back"


def test_a_rehearsal_alone_goes_no_further_until_somebody_says_so() -> None:
    alone = at_step(0, rehearsal_only=True)
    rehearsed = decide(alone, policy(), nodes(3, rehearsed="passed")).position
    assert (rehearsed.state, rehearsed.waits_for) == ("paused", "rehearsed")
    going = rules.resumed(rehearsed, policy(), 0, NOW)
    assert (going.state, going.step, going.rehearsal_only) == ("running", 1, False)


# Which nodes start


@pytest.mark.parametrize(
    ("step", "count", "expected"),
    [("1", 10, 1), ("5%", 1, 1), ("5%", 20, 1), ("5%", 21, 2), ("5%", 100, 5), ("33.4%", 3, 2), ("99.9%", 10, 10)],
)
def test_a_steps_share_is_rounded_up(step: str, count: int, expected: int) -> None:
    decided = decide(at_step(1), policy(steps=[step, "100%"]), nodes(count))
    assert (len(decided.start), decided.position.waits_for) == (expected, "nodes")
    order = rules.in_order(nodes(count), ID)
    assert list(decided.start) == [each.id for each in order[:expected]]


def test_nodes_that_were_started_and_have_left_fill_the_step_too() -> None:
    there = [node(1, **flipped()), *(node(n) for n in range(2, 100))]
    assert len(decide(at_step(1), policy(steps=["5%", "100%"]), there, started=4).start) == 1
    assert decide(at_step(1), policy(steps=["5%", "100%"]), there, started=5).start == ()
    assert decide(at_step(1), policy(steps=["5%", "100%"]), there, started=50).start == ()


def test_a_group_that_grows_has_room_and_one_that_shrinks_hasnt() -> None:
    began = [node(n, **flipped()) for n in range(5)]
    grown = decide(at_step(1), policy(steps=["5%", "100%"]), [*began, *(node(n) for n in range(5, 120))])
    assert len(grown.start) == 1
    shrunk = decide(at_step(1), policy(steps=["5%", "100%"]), [*began, *(node(n) for n in range(5, 20))])
    assert shrunk.start == ()


def test_offline_nodes_arent_started_and_have_their_place_when_they_return() -> None:
    there = nodes(10)
    order = rules.in_order(there, ID)
    away = {order[0].id, order[2].id}
    seen = [replace(each, online=each.id not in away) for each in there]
    assert decide(at_step(1), policy(steps=["3", "100%"]), seen).start == (order[1].id, order[3].id, order[4].id)
    begun = [replace(each, **flipped()) if each.id == order[1].id else each for each in there]
    assert decide(at_step(1), policy(steps=["3", "100%"]), begun).start == (order[0].id, order[2].id)


def test_the_last_step_starts_whoever_is_online() -> None:
    there = [*nodes(3, **flipped()), *(node(n) for n in range(3, 8)), node(8, online=False)]
    decided = decide(at_step(2), policy(steps=["1", "100%"]), there, started=200)
    assert sorted(decided.start) == [f"node {n}" for n in range(3, 8)]


@pytest.mark.parametrize(("window", "is_open"), [("Mon-Fri 11:00-13:00 UTC", True), ("Mon-Fri 13:00-11:00 UTC", False)])
def test_nodes_start_in_the_window_only(window: str, is_open: bool) -> None:
    decided = decide(at_step(1), policy(steps=["2", "100%"], window=window), nodes(5))
    assert len(decided.start) == 2 * is_open
    assert decided.position.waits_for == ("nodes" if is_open else "window")


def test_a_machine_that_doesnt_know_the_windows_zone_starts_nobody_and_says_so() -> None:
    made = rules_of(Policy(window="Mon-Sun 00:00-24:00 Europe/Atlantis"), accepted=True)
    decided = decide(at_step(1), made, nodes(5))
    assert (decided.start, decided.position.waits_for) == ((), "window")
    assert "tzdata" in decided.position.reason


def test_outside_of_the_window_started_nodes_go_on_to_the_next_step() -> None:
    closed = policy(steps=["2", "100%"], window="Mon-Fri 13:00-11:00 UTC")
    assert decide(at_step(1), closed, [node(1), *(node(n, **flipped()) for n in (2, 3))]).position.step == 2


def test_a_group_without_a_policy_gets_the_release_though_it_fails_on_some_nodes() -> None:
    there = [node(1, step=1, failed=True), node(2, **flipped(MINUTE)), node(3), node(4, online=False)]
    assert decide(at_step(1), rules_of(AT_ONCE), there).start == ("node 3",)
    there[2] = node(3, step=1, failed=True)
    assert decide(at_step(1), rules_of(AT_ONCE), there).position.state == "done"


# Failures and gates


@pytest.mark.parametrize(
    ("max_failed", "started", "failed", "stops"),
    [
        ("0%", 1, 1, True),
        ("2%", 49, 1, True),
        ("2%", 50, 1, False),
        ("2%", 99, 2, True),
        ("2%", 100, 2, False),
        ("2%", 100, 3, True),
        ("1", 2, 1, False),
        ("1", 2, 2, True),
    ],
)
def test_failed_nodes_of_those_that_the_step_has_started_rounded_down(
    max_failed: str, started: int, failed: int, stops: bool
) -> None:
    there = [node(n, step=1, failed=True, online=n % 2 == 0) for n in range(failed)]
    there += [node(n, **flipped()) for n in range(failed, started)]
    there += [node(n) for n in range(started, 400)]
    step = policy(steps=[str(started), "100%"], max_failed=max_failed)
    decided = decide(at_step(1), step, there)
    assert (decided.position.state == "paused", decided.position.waits_for == "failed") == (stops, stops)
    assert stops or decided.position.step == 2


def test_no_node_starts_after_a_failed_one_or_a_failed_gate() -> None:
    free, began = [node(n) for n in range(50)], [node(n, **flipped()) for n in range(50, 60)]
    one_failed = [*free, *began[1:], node(50, step=1, failed=True)]
    cases: list[tuple[list[GroupNode], list[Outcome]]] = [
        (one_failed, ["passed"]),
        ([*free, *began], ["passed", "failed"]),
    ]
    for there, gates in cases:
        for on_failure, state in (("pause", "paused"), ("rollback", "rolled_back")):
            decided = decide(at_step(1), policy(steps=["100%"], on_failure=on_failure), there, gates)
            assert (decided.position.state, decided.start) == (state, ())
            assert decided.roll_back == (state == "rolled_back")
    assert len(decide(at_step(1), policy(steps=["100%"]), [*free, *began], ["passed", "unknown"]).start) == 50


def test_a_gate_that_failed_is_named() -> None:
    there = nodes(2, **flipped())
    decided = decide(at_step(1), policy(), there, ["failed", "passed", "failed"])
    assert decided.position.reason == "gate 1 and 3 failed"


def test_a_failed_node_that_somebody_has_accepted_doesnt_count_again() -> None:
    there = [node(1, step=1, failed=True), node(2, **flipped())]
    stopped = decide(at_step(1), policy(), there).position
    assert stopped.state == "paused"
    going = rules.resumed(stopped, policy(), rules.failed_nodes(there), NOW)
    assert (going.state, going.forgiven, going.measured_from) == ("running", 1, NOW)
    assert decide(going, policy(), there).position.waits_for == "baking"
    assert decide(going, policy(), [*there, node(3, step=1, failed=True)]).position.state == "paused"


def test_who_ends_a_pause_of_their_own_accepts_no_failed_node() -> None:
    there = [node(1, step=1, failed=True), node(2, step=1, failed=True), node(3, **flipped())]
    position = rules.paused(at_step(1, forgiven=1), "lunch", NOW)
    going = rules.resumed(position, policy(), rules.failed_nodes(there), NOW)
    assert (going.state, going.forgiven, going.measured_from) == ("running", 1, NOW)
    stopped = decide(going, policy(), there).position
    assert (stopped.state, stopped.waits_for) == ("paused", "failed")
    # Now somebody has seen it.
    assert rules.resumed(stopped, policy(), rules.failed_nodes(there), NOW).forgiven == 2


def test_an_accepted_node_that_recovers_excuses_no_other() -> None:
    """Also where it has left the group."""
    before = at_step(1, forgiven=1)
    for there in ([node(1, **flipped()), node(2, **flipped())], [node(2, **flipped())]):
        going = decide(before, policy(steps=["2", "100%"]), there).position
        assert going.forgiven == 0
        failed = [*there[:-1], node(2, step=1, failed=True)]
        assert decide(replace(going, step=1), policy(steps=["2", "100%"]), failed).position.state == "paused"


def test_failures_with_which_a_step_ended_dont_count_for_the_next_and_later_ones_do() -> None:
    """A node that an earlier step has started may come back, and fail then."""
    many = policy(steps=["50%", "100%"], max_failed="10%")
    there = [node(0, step=1, failed=True), node(1, step=1, online=False), *(node(n, **flipped()) for n in range(2, 10))]
    there += [node(n) for n in range(10, 20)]
    second = decide(at_step(1), many, there).position
    assert (second.step, second.forgiven) == (2, 1)
    assert len(decide(second, many, there).start) == 10
    late = [there[0], node(1, step=1, failed=True), *there[2:10], *(node(n, step=2) for n in range(10, 19))]
    assert decide(second, many, late).position.waits_for == "failed"
    # Of ten in this step, one may.
    assert decide(second, many, [*late, node(19, step=2)]).position.waits_for == "nodes"


def test_gates_and_failures_stop_a_pause_too() -> None:
    waits = policy(steps=["1", {"pause": "2h"}, {"pause": "approval"}, "100%"])
    for step in (2, 3):
        there = [node(1, **flipped()), node(2)]
        assert decide(at_step(step), waits, there, ["unknown"]).position.waits_for in ("pause", "approval")
        assert decide(at_step(step), waits, there, ["failed"]).position.waits_for == "failed"
        there[0] = node(1, step=1, failed=True)
        assert decide(at_step(step), waits, there).position.waits_for == "failed"


# When a step ends


def test_a_step_waits_for_started_nodes_that_are_online() -> None:
    two = policy(steps=["3", "100%"])
    there = [node(1, **flipped()), node(2, step=1), node(3, step=1, online=False), node(4)]
    waiting = decide(at_step(1), two, there).position
    assert (waiting.waits_for, waiting.reason) == ("nodes", "it waits for 1 node to reach the release")
    there[1] = node(2, step=1, online=False)
    assert decide(at_step(1), two, there).position.step == 2


def test_a_step_bakes_from_its_last_nodes_flip() -> None:
    two = policy(steps=["2", "100%"], bake="10m")
    for ago, bakes in ((9 * MINUTE, True), (10 * MINUTE, False)):
        there = [node(1, **flipped()), node(2, **flipped(ago)), node(3)]
        decided = decide(at_step(1), two, there).position
        assert (decided.waits_for == "baking", decided.step == 2) == (bakes, not bakes)
        assert not bakes or decided.reason == "it bakes until 2026-06-03T12:01:00Z"


def test_a_step_bakes_neither_for_an_earlier_steps_node_nor_before_it_was_resumed() -> None:
    there = [node(1, **flipped(MINUTE)), node(2, **flipped(step=2)), node(3)]
    assert decide(at_step(2), policy(steps=["1", "2", "100%"]), there).position.step == 3
    resumed = at_step(2, measured_from=NOW - 9 * MINUTE)
    assert decide(resumed, policy(steps=["1", "2", "100%"]), there).position.waits_for == "baking"


def test_a_pause_begins_where_the_bake_ends_whatever_it_was_waiting_for_meanwhile() -> None:
    two = policy(steps=[{"until": "1", "pause": "2h"}, "100%"], bake="10m")
    for ago, pauses in ((129, True), (130, False)):
        there = [node(1, **flipped(ago * MINUTE)), node(2)]
        old = NOW - 300 * MINUTE
        position = at_step(1, step_since=old, measured_from=old, waits_for="unknown", waits_since=NOW - MINUTE)
        decided = decide(position, two, there).position
        assert (decided.waits_for == "pause", decided.step == 2) == (pauses, not pauses)


@pytest.mark.parametrize(("pause", "step"), [("61m", 1), ("60m", 2)])
def test_a_pause_alone_begins_with_its_step(pause: str, step: int) -> None:
    assert decide(at_step(1), policy(steps=[{"pause": pause}, "100%"]), nodes(3)).position.step == step


def test_an_approval_is_waited_for_without_end() -> None:
    waits = policy(steps=["1", {"pause": "approval", "role": "admin"}, "100%"])
    there = [node(1, **flipped()), node(2)]
    waiting = decide(at_step(2, step_since=NOW - timedelta(days=400)), waits, there).position
    assert (waiting.step, waiting.waits_for) == (2, "approval")
    assert waiting.reason == "it waits for an operator with the role admin"
    assert rules.next_step(waiting, waits, 0, NOW).step == 3


def test_silence_never_ends_a_step() -> None:
    there = [node(1, **flipped()), node(2)]
    waits = policy(steps=["1", "100%"])
    waiting = decide(at_step(1), waits, there, ["passed", "unknown", "unknown"]).position
    assert (waiting.state, waiting.step, waiting.waits_for) == ("running", 1, "unknown")
    assert waiting.reason == "gate 2 and 3 can't say yet"
    # It waits for as long as it waits, and goes on with an answer.
    assert decide(replace(waiting, waits_since=NOW - 5 * MINUTE), waits, there, ["unknown"]).position.waits_since < NOW
    assert decide(waiting, waits, there, ["passed"] * 3).position.step == 2


def test_silence_rolls_back_where_the_policy_says_so_and_when_the_steps_time_is_over() -> None:
    there = [node(1, **flipped()), node(2)]
    waits = policy(steps=[{"until": "1", "pause": "30m"}, "100%"], on_unknown="rollback")
    assert decide(at_step(1), waits, there, ["unknown"]).position.waits_for == "pause"
    at_once = policy(steps=["1", "100%"], on_unknown="rollback")
    # Answers are late: the nodes' calls, and those of webhooks that another replica asks anew.
    waiting = decide(at_step(1), at_once, there, ["unknown"]).position
    assert (waiting.state, waiting.waits_for) == ("running", "unknown")
    late = replace(waiting, waits_since=NOW - rules.ANSWERS_TAKE + timedelta(seconds=1))
    assert decide(late, at_once, there, ["unknown"]).position.waits_for == "unknown"
    ended = decide(replace(waiting, waits_since=NOW - rules.ANSWERS_TAKE), at_once, there, ["unknown"])
    assert (ended.position.state, ended.roll_back) == ("rolled_back", True)
    assert decide(waiting, at_once, there, ["passed"]).position.step == 2


def test_what_somebody_is_asked_to_approve_isnt_taken_back_by_silence() -> None:
    waits = policy(steps=[{"until": "1", "pause": "approval"}, "100%"], on_unknown="rollback")
    there = [node(1, **flipped()), node(2)]
    asked = decide(at_step(1), waits, there, ["passed"]).position
    assert asked.waits_for == "approval"
    assert decide(asked, waits, there, ["unknown"]).position.waits_for == "approval"
    assert decide(asked, waits, there, ["failed"]).position.waits_for == "failed"


def test_a_step_whose_nodes_are_all_silent_doesnt_end() -> None:
    three = policy(steps=["1", "3", "100%"], on_unknown="rollback")
    silent = [node(1, **flipped()), node(2, step=2, online=False), node(3, step=2, online=False), node(4)]
    waiting = decide(at_step(2), three, silent).position
    # No gate has been asked in vain: nothing is rolled back because nodes are away.
    assert (waiting.state, waiting.step, waiting.waits_for) == ("running", 2, "unknown")
    assert decide(at_step(2), three, [silent[0], replace(silent[1], **flipped(step=2)), *silent[2:]]).position.step == 3
    # There was nobody to start: earlier steps' nodes run it.
    assert decide(at_step(2), three, [silent[0], node(4, online=False)]).position.step == 3
    # None at all was there to be started.
    assert decide(at_step(1), three, nodes(3, online=False)).position.waits_for == "unknown"


def test_one_silent_node_doesnt_block_the_last_step() -> None:
    there = [*(node(n, **flipped()) for n in range(3)), node(3, step=2, online=False), node(4, online=False)]
    assert decide(at_step(2), policy(steps=["1", "100%"]), there).position.state == "done"


def test_the_last_step_ends_the_rollout() -> None:
    done = decide(at_step(1, forgiven=1), policy(), nodes(3, **flipped())).position
    assert (done.state, done.step, done.waits_for, done.reason) == ("done", 1, "", "")
    assert decide(at_step(1), policy(), []).position.state == "done"


@pytest.mark.parametrize("state", ["paused", "done", "aborted", "superseded", "rolled_back"])
def test_nothing_is_decided_about_a_rollout_that_isnt_running(state: State) -> None:
    for step in (0, 1):
        before = at_step(step, state=state)
        assert decide(before, policy(), nodes(3, rehearsed="passed"), ["failed"]) == RolloutDecision(before)


def test_why_it_waits_keeps_its_time_while_it_waits_for_the_same() -> None:
    there = [node(1, step=1), node(2)]
    one = policy(steps=["1", "100%"])
    since = NOW - 20 * MINUTE
    assert decide(at_step(1, waits_for="nodes", waits_since=since), one, there).position.waits_since == since
    assert decide(at_step(1, waits_for="window", waits_since=since), one, there).position.waits_since == NOW


def test_promoting_leaves_out_the_rest_of_the_step_or_all_steps_but_the_last() -> None:
    three = policy(steps=["1", "50%", "100%"])
    for before in (at_step(1), at_step(1, state="paused", waits_for="failed", rehearsal_only=True)):
        going = rules.promoted(before, three, 2, NOW, everything=False)
        assert (going.state, going.step, going.forgiven, going.rehearsal_only) == ("running", 2, 2, False)
        assert rules.promoted(before, three, 2, NOW, everything=True).step == 3
    assert rules.promoted(at_step(0), three, 0, NOW, everything=True).step == 3
    for everything in (False, True):
        assert rules.promoted(at_step(3), three, 0, NOW, everything=everything).state == "done"


# The order

LABELS = st.lists(st.sampled_from("aaaaaabbbcd") | st.integers(0, 40).map(str), max_size=120)


@given(LABELS, st.uuids().map(str))
def test_each_value_has_its_share_of_the_first_nodes_however_many(labels: list[str], rollout: str) -> None:
    there = [node(n, label=label) for n, label in enumerate(labels)]
    order = rules.in_order(there, rollout)
    assert sorted(order, key=lambda each: each.id) == sorted(there, key=lambda each: each.id)
    whole, begun = Counter(labels), Counter[str]()
    for count, each in enumerate(order, 1):
        begun[each.label] += 1
        for label, size in whole.items():
            assert abs(begun[label] - Fraction(size * count, len(labels))) < 2, (count, label)


@given(LABELS, st.data())
def test_the_order_within_a_value_is_the_same_whoever_leaves_or_joins(labels: list[str], data: st.DataObject) -> None:
    there = [node(n, label=label) for n, label in enumerate(labels)]
    kept = data.draw(st.sets(st.sampled_from(there))) if there else set()
    before, after = rules.in_order(there, ID), rules.in_order(kept, ID)
    for label in set(labels):
        assert [n.id for n in before if n.label == label and n in kept] == [n.id for n in after if n.label == label]


@given(st.permutations(range(30)))
def test_the_order_doesnt_depend_on_the_order_in_which_nodes_are_read(read: list[int]) -> None:
    there = [node(n, label=str(n % 4)) for n in range(30)]
    assert rules.in_order([there[n] for n in read], ID) == rules.in_order(there, ID)


def test_other_nodes_are_first_in_each_rollout() -> None:
    """Also of a value that one node has, beside one that nearly all have."""
    there = [node(0, label="rare"), *(node(n, label="common") for n in range(1, 20))]
    places = Counter(
        next(at for at, each in enumerate(rules.in_order(there, f"rollout {r}")) if each.label == "rare")
        for r in range(400)
    )
    assert set(places) == set(range(20))
    assert max(places.values()) < 60
    firsts = Counter(rules.in_order(there, f"rollout {r}")[0].id for r in range(400))
    assert len(firsts) == 20
    assert max(firsts.values()) < 60


# All at once


@st.composite
def situations(draw: st.DrawFn) -> tuple[RolloutPosition, Rules, GroupNodes, list[Outcome], datetime]:
    steps: list[Any] = draw(
        st.lists(st.sampled_from(["1", "3", {"pause": "1h"}, {"pause": "approval"}, {"until": "4", "pause": "5m"}]))
    )
    wanted = {"on_failure": draw(st.sampled_from(["pause", "rollback"])), "max_failed": draw(st.sampled_from("0123"))}
    ordered = [step for _, step in sorted(enumerate(steps), key=lambda pair: (str(pair[1]), pair[0]))]
    numbers = [step for step in ordered if isinstance(step, str)] + [s for s in ordered if not isinstance(s, str)]
    made = policy(steps=[*numbers, "100%"], **wanted)
    step = draw(st.integers(0, len(made.steps)))
    there = []
    for number in range(draw(st.integers(0, 12))):
        begun = draw(st.none() | st.integers(1, step)) if step else None
        ago = draw(st.none() | st.integers(0, 90))
        there.append(
            node(
                number,
                online=draw(st.booleans()),
                rehearsed=draw(st.sampled_from([None, "passed", "failed", "unknown"])),
                step=begun,
                reached=None if begun is None or ago is None else NOW - ago * MINUTE,
                failed=begun is not None and draw(st.integers(0, 5)) == 0,
            )
        )
    gates: list[Outcome] = draw(st.lists(st.sampled_from(["passed", "failed", "unknown"]), max_size=3))
    begun_ever = sum(each.step is not None for each in there) + draw(st.integers(0, 2))
    return at_step(step), made, GroupNodes(there, begun_ever, ID), gates, NOW


@given(situations())
def test_a_decision_that_is_taken_again_once_it_is_written_starts_nobody_again(
    situation: tuple[RolloutPosition, Rules, GroupNodes, list[Outcome], datetime],
) -> None:
    position, made, group, gates, now = situation
    decision = rules.decide(position, made, group, gates, now)
    assert rules.decide(position, made, group, gates, now) == decision
    step = decision.position.step
    assert not decision.start or (decision.position.state, step) == ("running", position.step)
    written = [replace(n, step=step) if n.id in decision.start else n for n in group.nodes]
    after = GroupNodes(written, group.started + len(decision.start), ID)
    again = rules.decide(decision.position, made, after, gates, now)
    assert not set(again.start) & {each.id for each in written if each.step is not None}
    assert not decision.start or again.start == ()
