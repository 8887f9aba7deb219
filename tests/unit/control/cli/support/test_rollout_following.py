"""Following a rollout: what is said of it, once each, until when, and that control may be away for a while."""

from collections.abc import Callable
from typing import Any

import pytest

from control.api.rollout_bodies import NodeCounts, RehearsalCounts
from control.cli.support import releasing, rollout_following
from control.cli.support.client import Failure, NotConverged, NotReached, Unreachable
from tests.support.shown_rollouts import node, rehearsal, rollout

Answer = dict[str, Any] | Exception
RELEASE = {
    "number": 7,
    "group": "shops",
    "generation": 4,
    "created_at": "2026-12-02T00:00:00Z",
    "rollout": {"steps": ["1", "100%"], "rehearse": True},
}


class Control:
    """Answers with these rollouts one after the other, the last one again and again."""

    def __init__(self, *rollouts: Answer, **lists: list[dict[str, Any]]) -> None:
        self.rollouts = list(rollouts)
        self.lists = lists

    async def get(self, where: str, **query: Any) -> dict[str, Any]:
        if where == "/v1/rollouts":
            return {"items": self.lists["rollouts"]}
        assert where == "/v1/rollouts/shops/7"
        answer = self.rollouts.pop(0) if len(self.rollouts) > 1 else self.rollouts[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def items(self, where: str, outcome: str = "", group: str = "") -> list[dict[str, Any]]:
        found = self.lists["fleet" if group else where.rpartition("/")[2]]
        return [item for item in found if not outcome or item["outcome"] == outcome]


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rollout_following, releasing):
        monkeypatch.setattr(module, "PAUSE", 0.0)


async def follow(control: Any, until: Callable[[Any], bool] = rollout_following.ended, **more: Any) -> dict[str, Any]:
    progress = rollout_following.RolloutProgress(control)
    return await rollout_following.follow(control, "shops", 7, progress, until=until, **more)


async def test_steps_and_nodes_are_said_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    none, one = NodeCounts(waiting=9), NodeCounts(at_target=1, syncing=1, waiting=7)
    two = NodeCounts(at_target=1, failed=1, waiting=7)
    control = Control(
        rollout(waits_for="rehearsal", step=0, reason="9 nodes rehearse it", counts=none),
        rollout(waits_for="rehearsal", step=0, reason="8 nodes rehearse it", counts=none),
        rollout(waits_for="nodes", step=1, reason="2 nodes were started", counts=none),
        rollout(waits_for="nodes", step=1, reason="1 node is on its way", counts=one),
        rollout("paused", "failed", step=1, reason="1 node failed", counts=two),
        rollout("paused", "failed", step=1, reason="1 node failed", counts=two),
        # One more has arrived, so they are listed again.
        rollout("aborted", step=1, reason="ana has aborted it", counts=NodeCounts(at_target=2, failed=1, waiting=6)),
        nodes=[node("a", "at_target"), node("b", "failed", error_code="disk_full", error_message="No room.")],
    )
    assert (await follow(control))["state"] == "aborted"
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "runs release" not in line] == [
        "  rehearsal: 9 nodes rehearse it",
        "  step 1 of 3: 2 nodes were started",
        "  paused at step 1 of 3: 1 node failed",
        "  b failed: No room. [disk_full]",
        "  aborted: ana has aborted it",
    ]
    assert [line.startswith("  a runs release 7 of group shops after") for line in said].count(True) == 1


async def test_nodes_on_which_the_rehearsal_fails_are_named_with_the_row(capsys: pytest.CaptureFixture[str]) -> None:
    bad = rehearsal("b", "failed", code="constraint", message="It isn't unique.", row="orders id=17")
    control = Control(
        rollout("paused", "failed", step=0, rehearsal=RehearsalCounts(passed=1, failed=1)),
        rehearsal=[rehearsal("a"), bad],
        nodes=[node("a", "at_target"), node("b", "failed")],
    )
    await follow(control, rollout_following.rehearsed)
    assert "  b failed the rehearsal: It isn't unique. (row orders id=17) [constraint]" in capsys.readouterr().out


async def test_control_may_be_away_for_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away, done = Unreachable("no answer"), rollout("done", counts=NodeCounts())
    assert (await follow(Control(away, away, done)))["state"] == "done"
    assert "control doesn't answer, and is asked again: no answer" in capsys.readouterr().err
    monkeypatch.setattr(rollout_following, "PATIENCE", -1.0)
    with pytest.raises(Unreachable):
        await follow(Control(away, away, done))


async def test_it_ends_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(rollout(waits_for="window", counts=NodeCounts()))
    assert (await follow(control, within=0.0))["state"] == "running"
    with pytest.raises(Unreachable):
        await follow(Control(Unreachable("no answer")), within=0.0)


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (rollout(waits_for="baking"), False),
        (rollout(waits_for="unknown"), False),
        (rollout(waits_for="window"), False),
        (rollout(waits_for="approval"), True),
        (rollout("paused", "failed"), True),
        (rollout("paused", "operator"), True),
        (rollout("aborted"), True),
        (rollout("done"), True),
    ],
)
def test_a_release_is_waited_for_until_a_person_is_needed(found: dict[str, Any], held: bool) -> None:
    assert rollout_following.held(found) is held


async def test_a_group_without_a_rollout_is_told() -> None:
    assert await rollout_following.newest(Control(rollouts=[{"number": 7}]), "shops") == 7  # type: ignore[arg-type]
    with pytest.raises(Failure, match="group shops has no rollout"):
        await rollout_following.newest(Control(rollouts=[]), "shops")  # type: ignore[arg-type]


def in_fleet(name: str, *, arrived: bool = True, state: str = "online") -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "state": state,
        "at_target": arrived,
        "generation": 5 if arrived else 3,
        "error": None,
        "state_since": RELEASE["created_at"],
    }


async def released(control: Any, within: float = 60.0) -> releasing.FollowedRelease:
    return await releasing.follow(control, RELEASE, within, offline_too=False, quiet=False)


async def test_a_rollout_that_pauses_ends_the_wait_and_says_what_goes_on() -> None:
    control = Control(
        rollout(waits_for="nodes", counts=NodeCounts()),
        rollout("paused", "failed", reason="1 node of the 2 that this step has started failed", counts=NodeCounts()),
        nodes=[node("a", "at_target"), node("b", "failed"), node("c", "waiting"), node("d", "offline")],
        fleet=[in_fleet("a"), in_fleet("b", arrived=False)],
    )
    followed = await released(control)
    expected = {"arrived": ["a"], "failed": ["b"], "late": [], "offline": ["d"], "revoked": [], "held": []}
    assert followed.document() == expected
    with pytest.raises(NotConverged, match="paused at step 1 of 3: 1 node of the 2") as caught:
        followed.check(RELEASE, 60.0, quiet=False)
    assert (caught.value.exit_code, caught.value.code) == (5, "rollout_not_done")
    assert "`skerry rollout resume shops`" in caught.value.cure


async def test_a_rollout_that_is_late_says_at_which_step() -> None:
    waiting = rollout(waits_for="baking", reason="it bakes until 02:00", counts=NodeCounts())
    followed = await released(Control(waiting, nodes=[], fleet=[]), within=0.0)
    with pytest.raises(NotConverged, match="isn't everywhere: step 1 of 3: it bakes until"):
        followed.check(RELEASE, 0.0, quiet=False)


async def test_a_rollout_that_is_done_ends_as_any_release(capsys: pytest.CaptureFixture[str]) -> None:
    control = Control(
        rollout("done", step=3, counts=NodeCounts(at_target=1)),
        nodes=[node("a", "at_target")],
        fleet=[in_fleet("a"), in_fleet("b", arrived=False, state="offline")],
    )
    followed = await released(control)
    with pytest.raises(NotReached, match="b is offline"):
        followed.check(RELEASE, 60.0, quiet=False)
    assert followed.rollout is not None
    assert followed.rollout["state"] == "done"
    assert capsys.readouterr().out.count("a runs release 7") == 1
