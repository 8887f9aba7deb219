from datetime import UTC, datetime, timedelta

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.cli import nodes, status
from control.cli.support import options, output, releasing
from control.cli.support.client import Json
from control.protocol.manifest import MANIFEST_FIELDS

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@given(st.text())
def test_nothing_can_steer_the_terminal(text: str) -> None:
    shown = output.clean(text)
    assert all(c in "\t\n" or (ord(c) >= 0x20 and not 0x7F <= ord(c) < 0xA0) for c in shown)
    assert len(shown) == len(text)


def test_a_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["NAME"], [["[red]x[/red] :smile: \x1b[31m \u202eeman\u202c"]], "none")
    assert "[red]x[/red] :smile: \ufffd[31m \ufffdeman\ufffd" in capsys.readouterr().out


def test_long_cells_are_whole_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["A", "B"], [["a" * 90, "b" * 90]], "none")
    assert "b" * 90 in capsys.readouterr().out


def test_long_names_are_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PLAIN_WIDTH", 80)
    name = "a-name-that-is-as-long-as-names-may-be-and-has-no-place-to-be-x"
    heads = ["NODE", "GROUP", "STANDING", "SEEN", "RELEASE", "SCHEMA", "FUNCTIONS"]
    output.table(heads, [[name, name, "failing", "14 min ago", "25 → 26", 3, f"{name}@1"]], "none")
    head, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, (head, *lines))) <= 80
    begins = [head.index(column) for column in heads]
    cells = [
        "".join(line[begin:end].strip() for line in lines[1:])
        for begin, end in zip(begins, (*begins[1:], None), strict=True)
    ]
    assert (cells[0], cells[1], cells[-1]) == (name, name, f"{name}@1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.44, "0.4 s"), (59, "59 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (3 * 86400, "3 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert output.span(seconds) == text
    told = "now" if seconds < 1 else f"{text} ago"
    assert output.ago((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == told


def test_times_to_come_and_none() -> None:
    assert output.ago((NOW + timedelta(seconds=30)).isoformat().replace("+00:00", "Z"), NOW) == "in 30 s"
    assert output.ago((NOW + timedelta(seconds=0.4)).isoformat(), NOW) == "now"
    assert output.ago(None) == "never"


def node(**changes: object) -> Json:
    usual: Json = {
        "id": "1",
        "name": "edge-1",
        "group": "default",
        "state": "online",
        "state_since": NOW.isoformat(),
        "last_seen_at": NOW.isoformat(),
        "generation": 5,
        "target_generation": 5,
        "at_target": True,
        "standing": "at_target",
        "error": None,
        "retry_at": None,
        "failures": 0,
        "warnings": [],
        "sync": None,
    }
    return usual | changes


def error(after: float) -> Json:
    return {"code": "compile_failed", "message": "no", "at": (NOW + timedelta(seconds=after)).isoformat()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "arrived"),
        ({"generation": 6, "target_generation": 6}, "arrived"),
        ({"generation": 4, "at_target": False}, "waiting"),
        # At target for the old generation: control hasn't told the node of the new one yet.
        ({"generation": 4}, "waiting"),
        ({"generation": 4, "at_target": False, "error": error(1)}, "failed"),
        ({"generation": 4, "at_target": False, "error": error(-1)}, "waiting"),
        ({"error": error(1)}, "arrived"),
    ],
)
def test_where_a_node_stands_towards_a_release(changes: Json, expected: str) -> None:
    assert releasing.progress(node(**changes), 5, NOW.isoformat()) == expected


def test_status_says_why() -> None:
    assert status.trouble(node()) == []
    assert status.well(node())
    failing = node(at_target=False, standing="failing", error=error(1), failures=3, retry_at=NOW.isoformat())
    assert status.standing(failing) == "failing"
    assert status.standing(node()) == "at target"
    assert status.standing(node(standing="syncing", sync={"step": "fetch"})) == "syncing (fetch)"
    assert "no [compile_failed]" in status.trouble(failing)[0]
    assert "skerry node retry edge-1" in status.trouble(failing)[1]
    late = node(warnings=[{"kind": "overdue", "message": "no sync for 6 min", "since": NOW.isoformat()}])
    assert "overdue: no sync for 6 min" in status.trouble(late)[0]
    assert not status.well(late)
    assert "offline" in status.trouble(node(state="offline"))[0]
    [said] = status.trouble(node(state="revoked", at_target=False, error=error(1), failures=3))
    assert "skerry node delete edge-1" in said
    assert "skerry node token --rejoin edge-1" in said
    assert not status.well(node(state="revoked"))


def test_who_can_not_run_a_release_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    named = [{"name": "n1", "lacks": ["the ABI direct (for f)", "the manifest's field cron (for f)"]}]
    line = "! node n1 can't run it, it lacks the ABI direct (for f) and the manifest's field cron (for f)"
    assert releasing.unfit({}) == releasing.unfit({"count": 0, "nodes": []}) == []
    assert releasing.unfit({"count": 1, "nodes": named}) == [line]
    assert releasing.unfit({"count": 2, "nodes": named}) == [line, "! 1 other node can't run it"]
    assert releasing.unfit({"count": 9, "nodes": named})[1] == "! 8 other nodes can't run it"
    release = {"number": 1, "group": "default", "generation": 1, "schema_floor": 0, "functions": []}
    releasing.show({**release, "unfit": {"count": 1, "nodes": named}}, planned=True)
    assert line in capsys.readouterr().out


def test_what_holds_writers_up_is_shown_of_moves_and_amendments(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [{"name": f"n{number}", "rows": 10**6, "seconds": 2.2} for number in range(6)]
    stalls = [{"change": 2, "message": "an index on items is built", "nodes": nodes}]
    found: Json = {"losses": [], "stalls": stalls}
    named = ", ".join(f"n{number} about 2.2 s" for number in range(5))
    line = f"! schema change 2: an index on items is built, writers wait: {named}, 1 other"
    releasing.show_move({**found, "node": "n", "group": "next", "changes": {}, "unfit": {}})
    assert line in " ".join(capsys.readouterr().out.split())
    releasing.show_plan({**found, "release": None}, "it would be registered", as_json=False)
    assert line in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ([], {}),
        (["--allow-unfit"], {"allow_unfit": True}),
        (["--allow-loss"], {"allow_loss": True}),
        (["--allow-stall"], {"allow_stall": True}),
    ],
)
def test_an_older_control_is_sent_no_field_that_it_does_not_know(words: list[str], allowed: Json) -> None:
    @click.command()
    @options.change_options
    def command(plan: bool, allowed: Json) -> Json:
        return {"plan": plan, **allowed}

    assert command.main(words, standalone_mode=False) == {"plan": False, **allowed}


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({}, [("capabilities", "not told yet")]),
        (
            {"abi": ["wagi", "direct"], "python": "3.13.5", "manifest": list(MANIFEST_FIELDS)},
            [("capabilities", "abi wagi direct, python 3.13.5, protocol 1"), ("manifest", "all fields")],
        ),
        (
            {"manifest": [field for field in MANIFEST_FIELDS if not field.startswith("secrets")]},
            [("capabilities", "protocol 1"), ("manifest", "all fields but secrets")],
        ),
        ({"manifest": 7}, [("capabilities", "manifest 7, protocol 1")]),
    ],
)
def test_what_a_node_can_run_is_shown(told: Json, shown: list[tuple[str, str]]) -> None:
    assert nodes._capabilities(told, 1) == shown


def test_a_plan_shows_removals() -> None:
    changes = {
        "add": [{"name": "new", "version": 1}],
        "change": [{"name": "old", "from": 1, "to": 2}],
        "remove": [{"name": "gone", "version": 3}, "bare"],
        "schema": [{"number": 4, "name": "more"}],
    }
    assert [line for line, _ in releasing.changes(changes)] == [
        "- gone@3 is removed",
        "- bare is removed",
        "+ new@1",
        "~ old 1 -> 2",
        "+ schema change 4 more",
    ]


def planned(**changes: object) -> Json:
    nothing: Json = {"add": [], "change": [], "remove": [], "schema": [], "grants": []}
    usual: Json = {
        "group": "default",
        "number": 4,
        "generation": 9,
        "rollback_to": None,
        "functions": [],
        "floor_before": 3,
        "schema_floor": 3,
        "held_below": None,
        "changes": nothing,
    }
    return usual | changes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "  nothing changes"),
        ({"schema_floor": 2}, "  ~ schema floor 3 -> 2 (nodes keep the schema that they have)"),
        (
            {"held_below": 5},
            "  = the schema floor stays at 3, to which it was lowered; --schema 5 raises it\n  nothing changes",
        ),
        ({"floor_before": 2}, "  ~ schema floor 2 -> 3"),
    ],
)
def test_a_plan_says_what_becomes_of_the_floor(changes: Json, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    releasing.show(planned(**changes), planned=True)
    assert capsys.readouterr().out.partition("\n")[2] == f"{told}\n"


def test_what_can_be_lost_has_a_line_with_the_nodes_that_have_most() -> None:
    most = [{"name": "a", "rows": 10_001}, {"name": "b", "rows": 3}, {"name": "c", "rows": None}]
    loss: Json = {"change": 4, "message": "the table t is dropped", "nodes": 9, "most": most}
    assert releasing.losses([loss]) == [
        "! schema change 4: the table t is dropped: rows by node: a more than 10,000, b 3, c unknown, 6 others"
    ]
