"""`--wait`: what is said of nodes that arrive and of those that don't, once each."""

from typing import Any

import pytest

from control.cli.support import releasing
from control.cli.support.client import NotConverged, NotReached

RELEASE = {"number": 3, "group": "default", "generation": 7, "created_at": "2026-11-24T12:00:00Z"}
ERROR = {"code": "probe_failed", "message": "It answered 500.", "at": "2026-11-24T12:00:05Z"}


def node(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "name": name,
        "state": "online",
        "at_target": False,
        "generation": 6,
        "error": None,
        "state_since": RELEASE["created_at"],
        **more,
    }


class Control:
    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self.answers = list(answers)

    async def items(self, where: str, **more: Any) -> list[dict[str, Any]]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def follow(*answers: list[dict[str, Any]], within: float = 60.0, quiet: bool = False, **more: Any) -> Any:
    """Follow the release; return what became of it, which is checked."""
    more.setdefault("offline_too", False)
    found = await releasing.follow(Control(*answers), RELEASE, within, quiet=quiet, **more)  # type: ignore[arg-type]
    found.check(RELEASE, within, quiet=quiet)
    return found


STEPS = {"state": "running", "rehearse": False, "rehearsal_only": False, "steps": ["1", "100%"]}


@pytest.mark.parametrize(("rollout", "shown"), [(STEPS, False), (STEPS, True), (None, False)])
async def test_what_isnt_waited_for_can_be_looked_at(
    rollout: Any, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {**RELEASE, "schema_floor": 0, "functions": [], "rollout": rollout}
    await releasing.finish(Control([]), made, None, shown=shown, as_json=False)  # type: ignore[arg-type]
    last = capsys.readouterr().out.splitlines()[-1]
    assert ("`skerry rollout status default`" in last) == (rollout is not None)


@pytest.mark.parametrize("quiet", [False, True])
async def test_why_a_node_failed_is_said_once(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("a", at_target=True, generation=7), node("b", error=ERROR), node("c", state="offline")]
    with pytest.raises(NotConverged) as caught:
        await follow(nodes, quiet=quiet)
    said = capsys.readouterr().out
    assert (said + str(caught.value)).count("It answered 500. [probe_failed]") == 1
    assert "b failed" in str(caught.value)
    assert "c is offline" in str(caught.value)
    assert ("a runs release 3" in said) is not quiet


async def test_a_node_that_arrives_later_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    old = node("a", error={**ERROR, "at": "2026-11-24T11:00:00Z"})
    there = node("a", at_target=True, generation=9)
    found = await follow([old], [there])
    assert (found.nodes, found.document()["arrived"]) == ([there], ["a"])
    assert capsys.readouterr().out.count("a runs release 3") == 1


async def test_a_node_that_does_not_arrive_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("a", state="syncing"), node("b", at_target=True, generation=7)]
    with pytest.raises(NotConverged, match=r"a \(syncing\) didn't arrive in") as caught:
        await follow(nodes, within=3 * releasing.PAUSE)
    assert caught.value.exit_code == 5
    assert capsys.readouterr().out.count("b runs release 3") == 1, "however often control is asked"


@pytest.mark.parametrize("state", ["offline", "revoked"])
async def test_who_is_away_is_named_and_neither_waited_for_nor_counted(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    there, away = node("a", at_target=True, generation=7), node("b", state=state)
    found = await releasing.follow(Control([there, away]), RELEASE, 60.0, offline_too=False, quiet=False)  # type: ignore[arg-type]
    assert f"b is {state}" in capsys.readouterr().out
    told = found.document()
    assert (told["arrived"], told["late"], told[state]) == (["a"], [], ["b"])
    with pytest.raises(NotReached, match=f"b is {state}") as caught:
        found.check(RELEASE, 60.0, quiet=False)
    assert (caught.value.exit_code, caught.value.code) == (6, "nodes_not_reached")
    # What a revoked node ran before says nothing.
    with pytest.raises(NotReached):
        await follow([there, node("b", state="revoked", at_target=True, generation=9)])


async def test_a_node_that_comes_back_while_others_are_waited_for_is_waited_for_too() -> None:
    there, away = node("a", at_target=True, generation=7), node("b", state="offline")
    back = node("b", at_target=True, generation=7)
    assert (await follow([node("a"), away], [there, node("b")], [there, back])).arrived == ["a", "b"]


async def test_offline_nodes_are_waited_for_where_that_is_wished() -> None:
    there, away = node("a", at_target=True, generation=7), node("b", state="offline")
    back = node("b", at_target=True, generation=7)
    assert (await follow([there, away], [there, away], [there, back], offline_too=True)).arrived == ["a", "b"]
    with pytest.raises(NotConverged, match=r"b \(offline\) didn't arrive in") as caught:
        await follow([there, away], within=0.3, offline_too=True)
    assert caught.value.exit_code == 5
