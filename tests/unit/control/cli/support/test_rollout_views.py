"""A rollout in words and tables: where it stands, why, what it saw, and the command that goes on."""

import re
from typing import Any

import pytest

from control.api.release_bodies import ReleaseRollout
from control.api.rollout_bodies import NodeCounts, RehearsalCounts
from control.cli.support import output, rollout_views
from tests.support.shown_rollouts import GATE, answer, rollout


def drawn(capsys: pytest.CaptureFixture[str], found: dict[str, Any], number: int | None = None) -> str:
    output.console().print(rollout_views.drawn(found, number))
    return capsys.readouterr().out


def test_steps_gates_with_their_values_and_who_is_offline_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    counts = NodeCounts(at_target=46, syncing=1, failed=2, offline=1, waiting=950)
    found = rollout("paused", "failed", 2, counts=counts, gates=[GATE], reason="gate 1 failed", attempt=2)
    shown = drawn(capsys, found)
    for pattern in (
        r"rollout +release 7 of group shops, attempt 2",
        r"nodes +1,000 in the group, 12 of them offline; 50 started",
        r"outcomes +46 at target, 1 syncing, 2 failed, 1 offline, 950 waiting",
        r"rehearsal +988 passed, 0 failed, 12 unknown",
        r"1 +1 +passed +1 +1 +- +- +- +-",
        r"2 +5% +now +50 +46 +1 +2 +1 +-",
        r"3 +100% +not begun +- +- +- +- +- +-",
        r"2 +error_ratio of orders at most 1\.2x of before +failed +3\.10 % +0\.24 % +0\.20 % +1,234 of at least 200",
        r"paused at step 2 of 3: gate 1 failed \(since ",
        r"`skerry rollout resume shops` accepts what failed so far .*`skerry rollout rollback shops` takes its nodes",
    ):
        assert re.search(pattern, shown), (pattern, shown)


def test_only_of_an_ended_rollout_superseded_nodes_have_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert "SUPERSEDED" not in drawn(capsys, rollout())
    found = rollout("rolled_back", step=2, counts=NodeCounts(superseded=49, waiting=950, left=1))
    shown = drawn(capsys, found)
    for pattern in (
        r"outcomes +950 waiting, 49 superseded, 1 left",
        r"STEP +UNTIL +STATE +STARTED +AT TARGET +SYNCING +FAILED +OFFLINE +SUPERSEDED +LEFT",
        r"1 +1 +passed +1 +1 +- +- +- +- +-",
        r"2 +5% +stopped +50 +- +- +- +- +49 +1",
    ):
        assert re.search(pattern, shown), (pattern, shown)
    # An older control doesn't know them.
    del found["counts"]["superseded"]
    assert "SUPERSEDED" not in drawn(capsys, found)


def test_text_from_control_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in drawn(capsys, rollout("paused", "operator", reason="red \x1b[31m", made_by="a\x1bb"))


@pytest.mark.parametrize(
    ("state", "waits_for", "step", "stands", "goes_on"),
    [
        ("running", "rehearsal", 0, "rehearsal: why", "by itself; `skerry rollout pause shops`"),
        ("running", "nodes", 2, "step 2 of 3: why", "by itself; `skerry rollout pause shops`"),
        ("running", "baking", 2, "step 2 of 3: why", "by itself; `skerry rollout promote shops` doesn't wait"),
        ("running", "window", 2, "step 2 of 3: why", "by itself; `skerry rollout promote shops` doesn't wait"),
        ("running", "approval", 2, "step 2 of 3: why", "`skerry rollout promote shops` approves it"),
        ("running", "unknown", 2, "step 2 of 3: why", "once that is known, or by `skerry rollout promote shops`"),
        ("paused", "rehearsed", 0, "paused at rehearsal: why", "`skerry rollout resume shops` sends it to nodes"),
        ("paused", "failed", 0, "paused at rehearsal: why", "`skerry rollout abort shops` drops it"),
        ("paused", "unknown", 0, "paused at rehearsal: why", "`skerry rollout abort shops` drops it"),
        ("paused", "failed", 2, "paused at step 2 of 3: why", "`skerry rollout rollback shops` takes its nodes back"),
        ("paused", "operator", 2, "paused at step 2 of 3: why", "`skerry rollout resume shops` goes on"),
        ("aborted", "", 2, "aborted: why", "`skerry rollout retry shops` begins again"),
        ("done", "", 3, "done: why", ""),
        ("superseded", "", 3, "superseded: why", ""),
        ("rolled_back", "", 3, "rolled back: why", ""),
    ],
)
def test_each_standing_says_why_and_what_goes_on(
    state: str, waits_for: str, step: int, stands: str, goes_on: str
) -> None:
    found = rollout(state, waits_for, step, reason="why")
    assert rollout_views.standing(found) == stands
    onward = rollout_views.onward(found)
    assert goes_on in onward
    assert bool(goes_on) == bool(onward)
    named = rollout_views.onward(found, 7)
    assert ("shops --number 7`" in named) == bool(goes_on)


def test_of_an_aborted_rollout_with_a_newer_release_no_retry_is_told() -> None:
    assert rollout_views.onward(rollout("aborted", newest=8)) == ""


@pytest.mark.parametrize(
    ("act", "found", "everything", "would"),
    [
        ("pause", rollout(), False, "no further node is started; 950 nodes that weren't started yet wait"),
        (
            "resume",
            rollout("paused", "failed"),
            False,
            "2 failed nodes are accepted, and it goes on at step 1 of 3",
        ),
        ("resume", rollout("paused", "failed", 0), False, "(988 passed, 0 failed, 12 unknown) is accepted"),
        ("resume", rollout("paused", "unknown", 0), False, "(988 passed, 0 failed, 12 unknown) is accepted"),
        ("resume", rollout("paused", "unknown"), False, "its gates are measured from now on, and it goes on at step 1"),
        ("resume", rollout("paused", "operator"), False, "it goes on at step 1 of 3"),
        ("promote", rollout(), False, "the rest of step 1 of 3 is left out"),
        ("promote", rollout(), True, "all steps that are left are left out: 950 nodes that weren't started yet"),
        ("abort", rollout(), False, "48 nodes that run release 7 keep it, 2 other started nodes go back"),
        ("retry", rollout("aborted"), False, "it begins again, as attempt 2"),
        ("rollback", rollout(), False, "48 nodes that run release 7, and 2 other started nodes, back"),
    ],
)
def test_an_act_says_what_it_would_do(act: str, found: dict[str, Any], everything: bool, would: str) -> None:
    assert would in rollout_views.would(act, found, everything=everything)


@pytest.mark.parametrize(
    ("act", "found", "everything", "asked"),
    [
        ("pause", rollout(), False, False),
        ("retry", rollout("aborted"), False, False),
        ("abort", rollout(), False, True),
        ("rollback", rollout(), False, True),
        ("resume", rollout("paused", "operator"), False, False),
        ("resume", rollout("paused", "rehearsed", 0), False, False),
        ("resume", rollout("paused", "failed"), False, True),
        ("resume", rollout("paused", "unknown", 0), False, True),
        ("promote", rollout(), False, False),
        ("promote", rollout("paused", "failed"), False, True),
        ("promote", rollout(), True, True),
        ("promote", rollout(counts=NodeCounts(waiting=100)), True, False),
        ("promote", rollout(counts=NodeCounts(waiting=101)), True, True),
    ],
)
def test_what_takes_a_release_away_or_goes_past_a_failure_is_asked(
    act: str, found: dict[str, Any], everything: bool, asked: bool
) -> None:
    assert rollout_views.is_asked(act, found, everything=everything) is asked


def way(steps: list[str], rehearse: bool, only: bool = False) -> dict[str, Any]:
    return answer(ReleaseRollout(state="running", rehearse=rehearse, rehearsal_only=only, steps=steps))


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (None, "goes to all nodes at once"),
        (way(["100%"], True), "is rehearsed on the nodes' own data first, and goes out to all nodes at once"),
        (way(["1", "5%", "100%"], False), "goes out in 3 steps: 1, 5%, 100%"),
        (way(["1", "100%"], True, only=True), "is only rehearsed, on the nodes' own data; resumed, it goes out in 2"),
    ],
)
def test_a_plan_says_how_the_release_goes_out(plan: dict[str, Any] | None, told: str) -> None:
    assert rollout_views.going_out(plan).startswith(told)


def test_unknown_is_never_left_out_of_a_rehearsal() -> None:
    assert rollout_views.rehearsal(None) == "left out"
    assert rollout_views.rehearsal(rollout(rehearsal=RehearsalCounts(passed=3))["rehearsal"]) == (
        "3 passed, 0 failed, 0 unknown"
    )
    pending = rollout(rehearsal=RehearsalCounts(passed=3, pending=2))["rehearsal"]
    assert rollout_views.rehearsal(pending).endswith("0 unknown, 2 haven't told yet")


def test_values_of_gates_are_shares_and_times() -> None:
    for gate, value, shown in (
        ("p99 of all at most 50ms", 0.0412, "41 ms"),
        ("error_ratio of all at most 0.5%", 0.0, "0.00 %"),
        ("webhook https://ci.example/gate", None, ""),
    ):
        assert rollout_views.measure(gate, value) == shown
