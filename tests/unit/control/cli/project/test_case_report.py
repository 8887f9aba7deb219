"""How a call differs from its case: which values are the same, and what a call that failed may still be."""

import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

from control.cli.project import case_report
from control.cli.project.case_calls import CaseDone, CaseResult
from control.cli.project.case_files import CaseRequest, CaseRows, TestCase
from control.cli.project.case_report import Ended, compared, same
from control.cli.project.project_files import FunctionSource

FUNCTION = FunctionSource(Path("f"), "f", "", Path("f/f.wasm"))


def case(**more: Any) -> TestCase:
    given: dict[str, Any] = {"http": [], "status": 200, "headers": {}, "body": None, "json": UNSET, "after": [], **more}
    return TestCase(Path("tests/f.toml"), "a", FUNCTION, CaseRequest(), {}, "", **given)


def done(body: bytes = b"", **more: Any) -> CaseDone:
    return CaseDone(0, CaseResult(**{"status": 200, "body": body, **more}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (True, 1),
        (0, False),
        ([True], [1]),
        ({"a": 1}, {"a": 1, "b": None}),
        ({"a": 1, "b": None}, {"a": 1}),
        ({"a": 1}, {"b": 1}),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ([], {}),
        (None, False),
        ("1", 1),
    ],
)
def test_what_is_not_the_same(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert not same(other, one)
    assert not same([{"x": one}], [{"x": other}])
    assert same(one, one)


def test_what_is_the_same() -> None:
    assert same({"a": [1, {"b": None}], "c": True}, {"c": True, "a": [1.0, {"b": None}]})


def test_a_tick_has_succeeded_with_any_status_of_success() -> None:
    assert [compared(case(status=None), done(status=status)) for status in (200, 204, 299)] == [[], [], []]
    (line,) = compared(case(status=None), done(status=300))
    assert line.startswith("status: a status from 200 to 299 is expected, 300 ")
    assert compared(case(status=None), done(status=502, code="guest_trap", message="x")) == [
        "the call failed: x (guest_trap)"
    ]


def test_a_field_that_is_not_expected_is_different() -> None:
    assert compared(case(json={"a": 1}), done(b'{"a":1}')) == []
    lines = compared(case(json={"a": 1}), done(b'{"a":1,"b":2}'))
    assert lines[0] == "json (- is expected, + came):"
    assert any(line.startswith("  + ") and '"b": 2' in line for line in lines)


@pytest.mark.parametrize(
    ("expected", "passes"),
    [
        ({"status": 502}, True),
        ({"status": 500}, False),
        ({"status": 502, "body": ""}, False),
        ({"status": 502, "json": None}, False),
        ({"status": 502, "headers": {"x": "1"}}, False),
    ],
)
def test_a_call_that_failed_has_a_status_and_nothing_else(expected: dict[str, Any], passes: bool) -> None:
    ended = done(status=502, code="guest_trap", message="It trapped.")
    lines = compared(case(**expected), ended)
    assert lines == ([] if passes else ["the call failed: It trapped. (guest_trap)"])


def test_an_answer_that_was_not_asked_for_is_different() -> None:
    assert compared(case(), done(unasked=["GET https://a.example/"])) == [
        "http: it didn't request GET https://a.example/"
    ]


def test_rows_after_the_call_are_compared_in_their_order() -> None:
    after = [CaseRows("SELECT 1", [[1, "a"], [2, "b"]])]
    ended = done()
    ended.rows = [[[1, "a"], [2, "b"]]]
    assert compared(case(after=after), ended) == []
    ended.rows = [[[2, "b"], [1, "a"]]]
    assert compared(case(after=after), ended)[0] == "rows of SELECT 1 (- is expected, + came):"
    ended.rows = []
    [line] = compared(case(after=after), ended)
    assert line.startswith("sql_after: it wasn't run")


def test_what_a_function_logged_is_in_junits_file(tmp_path: Path) -> None:
    run = [Ended(case(), done(log=b"here\x01\n"), []), Ended(case(), done(), ["status: …", "second"])]
    file = tmp_path / "deep" / "er" / "run.xml"
    case_report.write(file, run, 1.5)
    [suite] = xml.parse(file).getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("tests/f.toml", "2", "1")
    logged, failed = suite
    assert logged.findtext("system-err") == "here\ufffd\n"
    assert [part.tag for part in failed] == ["failure"]
    assert (failed[0].get("message"), failed[0].text) == ("status: …", "status: …\nsecond")
