"""What `skerry status` says of a node that isn't well."""

from datetime import UTC, datetime, timedelta
from typing import Self

import pytest

from control.cli import main as cli
from control.cli import nodes, status
from control.cli.status import trouble
from control.cli.support import options
from control.cli.support.client import Json


@pytest.mark.parametrize(("failures", "told"), [(1, ", 1 failure"), (2, ", 2 failures")])
def test_failures_are_counted_in_words(failures: int, told: str) -> None:
    error = {"message": "The disk is full.", "code": "disk_full", "at": "2026-11-28T12:00:00Z"}
    node = {"state": "online", "error": error, "at_target": False, "failures": failures, "retry_at": None}
    [line] = trouble({**node, "warnings": []})
    assert line.startswith("The disk is full. [disk_full], ")
    assert line.endswith(told)


def fleet(count: int, **groups: list[str]) -> tuple[list[Json], list[Json]]:
    """Groups and nodes; `groups` has the standings of each group's first nodes, the others are at their target."""
    made: list[Json] = []
    for group, standings in groups.items():
        for number in range(count):
            standing = standings[number] if number < len(standings) else "at_target"
            made.append(
                {
                    "id": f"{group}-{number}",
                    "name": f"{group}-{number:04d}",
                    "group": group,
                    "generation": 7,
                    "standing": standing,
                    "state": "offline" if standing == "offline" else "online",
                    "state_since": "2026-11-28T12:00:00Z",
                    "at_target": standing == "at_target",
                    "release": 25,
                    "target_release": 26,
                    "functions": [],
                    "schema_version": 1,
                    "last_seen_at": None,
                    "last_sync_at": None,
                    "error": None,
                    "failures": 0,
                    "retry_at": None,
                    "warnings": [],
                    "sync": None,
                }
            )
    return [{"name": group, "release": None} for group in groups], made


def test_a_large_fleet_is_counted_and_its_worst_nodes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    groups, nodes = fleet(2500, north=[], south=["at_target", "failing", "offline", "behind"])
    status._show(groups, nodes, None, None, [], 3)
    said = capsys.readouterr().out
    shown = [line.split()[0] for line in said.splitlines() if "→ 26" in line]
    assert shown == ["south-0001", "south-0002", "south-0003"]
    assert "  2,500 nodes: 2,500 at target (--limit" in said
    assert "  2,497 more nodes: 2,497 at target (--limit" in said
    assert len(said.splitlines()) < 20
    # A fleet that is as small as that is shown whole, in the order of its names.
    groups, nodes = fleet(2, north=["failing", "at_target"])
    status._show(groups, nodes, None, None, [], 2)
    said = capsys.readouterr().out
    assert "--limit" not in said
    assert said.index("north-0000") < said.index("north-0001")


class Fleet:
    """A client of a control that has so many nodes."""

    def __init__(self, count: int) -> None:
        self.nodes = fleet(count, north=[])[1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def items(self, _path: str, most: int | None = None, **_query: object) -> list[Json]:
        return self.nodes[:most]


@pytest.mark.parametrize(
    ("arguments", "count", "listed", "more"),
    [([], 250, 100, True), ([], 100, 100, False), (["--limit", "7"], 250, 7, True), (["--json"], 250, 250, False)],
)
def test_a_list_of_nodes_says_where_there_are_more(
    arguments: list[str],
    count: int,
    listed: int,
    more: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "client", lambda: Fleet(count))
    assert cli.run(["node", "list", *arguments]) == 0
    said = capsys.readouterr()
    assert said.out.count("north-") == listed * (2 if "--json" in arguments else 1)
    assert ("there are more" in said.err) is more


def line(function: str = "nightly", **told: object) -> Json:
    return {
        **{"group": "shops", "function": function, "cron": "0 3 * * *", "nodes": 40, "failing": 0, "example": None},
        **{"last_run_at": None, "next_run_at": None, "late_seconds": 0, "failures": 0},
        **told,
    }


def test_schedules_are_shown_of_their_group_and_those_that_failed_first(capsys: pytest.CaptureFixture[str]) -> None:
    past, future = ((datetime.now(UTC) + timedelta(hours=hours)).isoformat() for hours in (-4.1, 5.1))
    lines = [line(f"f{n}") for n in range(9)]
    lines += [line("away", group="other"), line("well", cron="", last_run_at=past, late_seconds=59)]
    lines.append(line(last_run_at=past, next_run_at=future, failing=2, example="edge-7", late_seconds=150, failures=3))
    groups = [{"name": "shops", "release": None}]
    status._show(groups, [], None, {"schedules": lines}, [], 3)
    said = [text.strip() for text in capsys.readouterr().out.splitlines() if "schedule" in text]
    assert said[0] == (
        "schedule of nightly 0 3 * * *: last run 4 h ago, which failed on 2 of 40 nodes (as edge-7), due in 5 h, "
        "late by 2 min, 3 failures"
    )
    assert said[1] == "schedule of well after releases: last run 4 h ago"
    assert said[2] == "schedule of f0 0 3 * * *: no run yet"
    assert said[-1] == "and 1 more line of schedules (--json has all)"
    told = {"database_bytes": 0, "wal_bytes": 0, "disk_free_bytes": 0, "memory_bytes": 0, "told_at": past}
    assert len(nodes._numbers(told)) == 1
    ran = line(last_run_at=past, last_status="time_limit", failures=1)
    assert nodes._numbers({**told, "schedules": [ran]})[1:] == [
        ("schedule", "nightly 0 3 * * *: last run 4 h ago (time_limit), 1 failure")
    ]
    # A control that is too old to have them.
    status._show(groups, [], None, None, [], 3)
    assert "schedule" not in capsys.readouterr().out
