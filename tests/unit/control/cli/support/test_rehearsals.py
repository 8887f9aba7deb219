"""What nodes found in a rehearsal, as tables by outcome, and when that lets the release go out."""

import re

import pytest

from control.cli.support import rehearsals
from control.cli.support.client import NotConverged
from control.protocol.wire import RehearsedChange
from tests.support.shown_rollouts import rehearsal, rollout

BAD = rehearsal(
    "shop-12", "failed", code="constraint_unique", message="UNIQUE failed: orders.code", row="orders id=17", changes=[]
)
AWAY = rehearsal("shop-99", "unknown", code="offline", changes=[], seconds=0.0, database=0)
AWAY["schema_digest"] = BAD["schema_digest"] = ""


def test_each_outcome_has_its_table_with_changes_times_and_the_row(capsys: pytest.CaptureFixture[str]) -> None:
    two = [RehearsedChange(3, "prices", rows=1200, seconds=0.4, stall=0.25), RehearsedChange(4, "index", 0, 0.1, 0.0)]
    rehearsals.show([rehearsal("shop-1"), AWAY, rehearsal("shop-2", changes=two), BAD], 20)
    shown = capsys.readouterr().out
    failed, _, rest = shown.partition("unknown on 1 node")
    unknown, _, passed = rest.partition("passed on 2 nodes")
    assert failed.startswith("failed on 1 node\n")
    assert re.search(r"shop-12 .* UNIQUE failed: orders.code \[constraint_unique\] +orders id=17", failed)
    assert re.search(r"shop-99 .* it is offline \[offline\]", unknown)
    rows = [" ".join(line.split()) for line in passed.splitlines() if line.strip()]
    # The longest stall first; what is about the whole rehearsal once.
    assert rows[2:4] == ["shop-2 3 prices 1,200 0.4 s 0.2 s a1b2c3d4e5f6 2.5 s 3.0 MiB", "4 index 0 0.1 s 0.0 s"]
    assert rows[4].startswith("shop-1 3 prices ")
    assert rows[5] == "schema a1b2c3d4e5f6 on 2 nodes"


def test_so_many_of_each_outcome_are_shown_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [rehearsal(f"shop-{number}", stall=number) for number in range(30)]
    rehearsals.show([*nodes, BAD], 20)
    shown = capsys.readouterr().out
    assert "10 more nodes (--limit shows more)" in shown
    assert "shop-12 " in shown, "an outcome with few has them all"
    assert ("shop-29 " in shown, "shop-9 " in shown) == (True, False), "the longest stalls are shown"


def test_different_schemas_are_loud(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [rehearsal(f"shop-{number}") for number in range(7)] + [rehearsal("old", schema_digest="ffff" * 16)]
    rehearsals.show(nodes, 20)
    shown = capsys.readouterr().out
    assert "! the schemas that result are NOT the same on all nodes:" in shown
    assert "!   schema a1b2c3d4e5f6 on 7 nodes: shop-0, shop-1, shop-2, shop-3, shop-4, …" in shown
    assert "!   schema ffffffffffff on 1 node: old\n" in shown


def test_nobody_has_told(capsys: pytest.CaptureFixture[str]) -> None:
    rehearsals.show([], 20)
    assert capsys.readouterr().out == "no node has told how its rehearsal went\n"


@pytest.mark.parametrize(
    ("state", "waits_for", "step"),
    [("paused", "rehearsed", 0), ("running", "nodes", 1), ("done", "", 3), ("paused", "operator", 1)],
)
def test_a_rehearsal_that_passed_is_fine_also_if_somebody_was_faster(state: str, waits_for: str, step: int) -> None:
    rehearsals.check(rollout(state, waits_for, step), [rehearsal("shop-1")])


@pytest.mark.parametrize(
    ("state", "waits_for"), [("paused", "failed"), ("paused", "unknown"), ("paused", "operator"), ("aborted", "")]
)
def test_a_rehearsal_that_did_not_pass_is_a_failure_that_names_the_row(state: str, waits_for: str) -> None:
    reason = "the rehearsal failed on 1 node of 3"
    with pytest.raises(NotConverged) as caught:
        rehearsals.check(rollout(state, waits_for, 0, reason=reason), [rehearsal("shop-1"), BAD, AWAY])
    told = "shop-12: UNIQUE failed: orders.code (row orders id=17) [constraint_unique]"
    assert str(caught.value).endswith(f"{reason}: {told}")
    assert (caught.value.exit_code, caught.value.code) == (5, "rehearsal_not_passed")
    assert "`skerry rollout " in caught.value.cure


def test_many_failures_are_counted() -> None:
    nodes = [{**BAD, "name": f"shop-{number}"} for number in range(8)]
    with pytest.raises(NotConverged, match=r"shop-4: [^;]*; and 3 others$"):
        rehearsals.check(rollout("paused", "failed", 0), nodes)
