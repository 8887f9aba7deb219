"""What pages make of a rollout: its state in words, how many nodes a step starts, and what may be done by whom."""

from datetime import UTC, datetime
from typing import Any

import pytest

from control.api.rollout_bodies import NodeCounts, NodeRehearsal, RehearsalCounts, RolloutStep, ShownRollout
from control.console import shown_rollout
from control.console.shown_rollout import RolloutView
from control.rollouts.policy import Policy, StepTable

NOW = datetime(2026, 12, 2, tzinfo=UTC)
POLICY = Policy(
    steps=["1", "5%", StepTable(until="25%", pause="approval", role="admin"), StepTable(pause="2h"), "100%"]
)
TEXTS = ("1", "5%", "25%, pause approval", "pause 2h", "100%")


def view(state: str = "running", waits_for: str = "", step: int = 2, **more: Any) -> RolloutView:
    """A rollout of release 7 in a group of 1,000 nodes."""
    group_release = more.pop("group_release", 6)
    counts = more.pop("counts", NodeCounts(at_target=48, failed=2, waiting=950))
    by_step = {1: NodeCounts(at_target=1), 2: NodeCounts(at_target=47, failed=2)}
    plan = [
        RolloutStep(
            number=at,
            text=text,
            state="passed" if at < step else "now" if at == step else "not_begun",
            nodes=by_step.get(at, NodeCounts()) if at <= step else NodeCounts(),
            gates=[],
        )
        for at, text in enumerate(TEXTS, 1)
    ]
    fields: dict[str, Any] = {
        **{"group": "shops", "number": 7, "state": state, "step": step, "steps": len(TEXTS), "waits_for": waits_for},
        **{"waits_since": NOW, "reason": "gate 1 failed", "attempt": 1, "started": 50, "nodes": 1000, "offline": 12},
        **{"newest": 7, "made_by": "ci", "made_at": NOW, "ended_at": None},
        **{"policy": POLICY, "rehearsal": RehearsalCounts(passed=1000), "plan": plan, "counts": counts},
        "undo": None,
        **more,
    }
    return RolloutView(
        ShownRollout(**fields), group_release, [], more_rehearsals=False, failing=(), digests=[], changes=[]
    )


@pytest.mark.parametrize(
    ("state", "waits_for", "step", "words"),
    [
        ("running", "rehearsal", 0, "rehearsing"),
        ("running", "nodes", 2, "step 2 of 5"),
        ("running", "baking", 2, "baking at step 2 of 5"),
        ("running", "window", 2, "waits for its window at step 2 of 5"),
        ("running", "pause", 4, "pausing at step 4 of 5"),
        ("running", "approval", 3, "held for approval at step 3 of 5"),
        ("running", "unknown", 2, "held at step 2 of 5"),
        ("paused", "failed", 2, "held at step 2 of 5"),
        ("paused", "failed", 0, "held by its rehearsal"),
        ("paused", "unknown", 0, "held by its rehearsal"),
        ("paused", "operator", 2, "paused at step 2 of 5"),
        ("paused", "operator", 0, "paused at its rehearsal"),
        ("paused", "rehearsed", 0, "rehearsed"),
        ("aborted", "", 2, "aborted at step 2 of 5"),
        ("rolled_back", "", 2, "rolled back at step 2 of 5"),
        ("superseded", "", 0, "superseded at its rehearsal"),
        ("done", "", 5, "done"),
    ],
)
def test_each_state_has_words_and_says_what_follows(state: str, waits_for: str, step: int, words: str) -> None:
    shown = view(state, waits_for, step)
    assert shown_rollout.verdict(shown.rollout)[1] == words
    kind, title, text = shown.waits
    assert kind
    assert title
    held = words.startswith("held")
    assert shown_rollout.is_held(shown.rollout) == (held and waits_for != "approval")
    assert ("warn" in kind) == (held or waits_for == "operator"), "who must decide is told where somebody must"
    assert not held or "abort" in text.lower()


def test_steps_start_their_share_of_the_nodes_of_now() -> None:
    boxes = view().boxes
    assert [box.nodes for box in boxes] == [1, 49, 200, 0, 750]
    assert [box.text for box in boxes] == ["1 node", "5%", "25%", "", "100%"]
    assert boxes[2].later == ["bakes 10m", "waits for approval by the role admin"]
    assert (boxes[3].starts, boxes[3].later) == (False, ["pauses 2 h"])
    # More were started than there are to be now: nodes have left.
    fewer = view(nodes=100, counts=NodeCounts(at_target=48, failed=2, waiting=50)).boxes
    assert [box.nodes for box in fewer] == [1, 49, 0, 0, 50]
    # Of one that has ended, what was started.
    assert [box.nodes for box in view("aborted").boxes] == [1, 49, 0, 0, 0]


def test_what_was_superseded_was_started() -> None:
    gone = NodeCounts(superseded=2, left=1, waiting=7)
    assert shown_rollout.started(gone) == 3
    assert shown_rollout.said(gone) == "7 not begun, 2 superseded, 1 left"


def names(shown: RolloutView) -> list[str]:
    return [act.name for act in shown.acts]


def test_what_can_be_done_is_what_control_would_do() -> None:
    assert names(view()) == ["pause", "promote", "abort", "rollback"]
    assert names(view("paused", "failed")) == ["resume", "promote", "abort", "rollback"]
    assert names(view("aborted")) == ["retry", "rollback"]
    assert names(view("aborted", newest=8)) == [], "control would refuse both"
    assert "Release 8 is a newer one" in view("aborted", newest=8).waits[2]
    assert names(view("done")) == names(view("superseded")) == names(view("rolled_back")) == []
    assert names(view(step=0, started=0)) == ["pause", "promote", "abort"], "nothing to take back"
    assert names(view(group_release=None)) == ["pause", "promote", "abort"], "nothing to go back to"


def test_what_was_stopped_by_itself_is_resumed_with_open_eyes() -> None:
    weights = {waits: view("paused", waits).acts[0].weight for waits in ("operator", "rehearsed", "failed", "unknown")}
    assert weights == {"operator": "light", "rehearsed": "light", "failed": "middle", "unknown": "middle"}


def test_an_approval_takes_its_role_and_what_leaves_it_out_too() -> None:
    def role(shown: RolloutView) -> str:
        return next(act.role for act in shown.acts if act.name == "promote")

    assert role(view()) == "deploy"
    assert role(view("running", "approval", 3)) == "admin"
    assert role(view("running", "baking", 3)) == "admin", "it would leave out the approval"
    assert view().role_for_all == "admin"
    assert view(step=4).role_for_all == "deploy"


def test_nodes_that_have_left_or_got_another_release_arent_taken_back() -> None:
    shown = view(counts=NodeCounts(at_target=3, failed=1, left=5, superseded=2))
    act = shown.act("rollback")
    assert act is not None
    assert shown.affected(act) == 4
    assert "from 4 nodes" in shown.lines(act)[0].text


def test_what_changes_many_nodes_asks_for_the_name() -> None:
    def heavy(name: str, **counts: int) -> bool:
        shown = view(counts=NodeCounts(**counts))
        act = shown.act(name)
        assert act is not None
        return shown.is_heavy(act)

    assert heavy("rollback", at_target=1)
    assert not heavy("abort", syncing=50, failed=49, at_target=900)
    assert heavy("abort", syncing=50, failed=50)
    assert heavy("abort", offline=100)
    assert not heavy("promote", waiting=99)
    assert heavy("promote", waiting=100)
    assert not heavy("pause", waiting=1000)


def test_rehearsals_that_did_not_pass_are_grouped_the_failed_ones_first() -> None:
    def one(name: str, outcome: Any, code: str = "") -> NodeRehearsal:
        return NodeRehearsal(name, outcome, code, f"{code} it says", "", [], "", 0.0, 0, None)

    told = [one("a", "passed"), one("b", "unknown", "offline"), one("c", "unknown", "offline"), one("d", "failed", "x")]
    found = [(group.outcome, group.code, len(group.nodes)) for group in shown_rollout.grouped(told)]
    assert found == [("failed", "x", 1), ("unknown", "offline", 2)]


def test_a_page_is_loaded_again_when_other_acts_are_offered() -> None:
    """Numbers change in place, but forms don't."""
    assert view("running", "nodes").shape == view("running", "baking", nodes=999).shape
    shapes = {view().shape, view("running", "approval", 3).shape, view("paused", "operator").shape}
    shapes |= {view("paused", "failed").shape, view(started=0).shape}
    assert len(shapes) == 5
