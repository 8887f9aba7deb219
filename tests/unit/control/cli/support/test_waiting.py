"""`--wait`: what is said of nodes that arrive and of those that don't, once each."""

from typing import Any

import pytest

from control.cli.support import waiting
from control.cli.support.client import NotConverged

RELEASE = {"number": 3, "group": "default", "generation": 7, "created_at": "2026-11-24T12:00:00Z"}
ERROR = {"code": "probe_failed", "message": "It answered 500.", "at": "2026-11-24T12:00:05Z"}


def node(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "name": name, "state": "online", "at_target": False, "generation": 6, "error": None, **more}


class Control:
    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self.answers = list(answers)

    async def items(self, where: str, **more: Any) -> list[dict[str, Any]]:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def follow(*answers: list[dict[str, Any]], within: float = 60.0, quiet: bool = False) -> Any:
    return await waiting.follow(Control(*answers), RELEASE, within, quiet=quiet)  # type: ignore[arg-type]


@pytest.mark.parametrize("quiet", [False, True])
async def test_why_a_node_failed_is_said_once(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("a", at_target=True, generation=7), node("b", error=ERROR)]
    with pytest.raises(NotConverged) as caught:
        await follow(nodes, quiet=quiet)
    said = capsys.readouterr().out
    assert (said + str(caught.value)).count("It answered 500. [probe_failed]") == 1
    assert "b failed" in str(caught.value)
    assert ("a runs release 3" in said) is not quiet


async def test_a_node_that_arrives_later_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    old = node("a", error={**ERROR, "at": "2026-11-24T11:00:00Z"})
    there = node("a", at_target=True, generation=9)
    assert await follow([old], [there]) == [there]
    assert capsys.readouterr().out.count("a runs release 3") == 1


async def test_a_node_that_does_not_arrive_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotConverged, match=r"a \(offline\) didn't arrive in") as caught:
        await follow([node("a", state="offline")], within=0.3)
    assert caught.value.exit_code == 5
