"""Every code that the program can tell a person has its entry in docs/errors.md, and none is there for nothing."""

import ast
import functools
import re
from pathlib import Path

import pytest

from control import problems
from control.sync import reports
from edge_runtime.dispatch import termination
from edge_runtime.sql import session

ROOT = Path(__file__).resolve().parents[3]
ENTRY = re.compile(r"^#### `([a-z0-9_]+)`$", re.MULTILINE)
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")

RAISED = {
    "AuthError", "CommitFailed", "Failure", "Fault", "GuestFault", "JoinFailed", "LoadFailed", "NotConnected",
    "NotConverged", "NotFetched", "Problem", "ProblemError", "Refusal", "Refused", "SqlError", "StepFailed",
    "SyncError", "SyncFailed", "Unreachable", "_Broken", "_fail", "_fault", "code_of", "fail",
}  # fmt: skip
"""What is called with a code: as the argument `code`, or as one of the first two positional ones."""


def strings(node: ast.expr) -> list[str]:
    """The constant strings that an argument can be."""
    if isinstance(node, ast.IfExp):
        return strings(node.body) + strings(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def raised(source: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in RAISED:
                positional = [text for argument in node.args[:2] for text in strings(argument)]
                # A positional word without an underscore is no code: no message is one word.
                found |= {text for text in positional if CODE.fullmatch(text)}
                found |= {text for keyword in node.keywords if keyword.arg == "code" for text in strings(keyword.value)}
        elif isinstance(node, ast.Assign):
            target = getattr(node.targets[0], "id", getattr(node.targets[0], "attr", ""))
            if target in ("code", "limit_code"):
                found |= set(strings(node.value)) - {""}
    return found


@functools.cache
def codes() -> dict[str, str]:
    """Every code, and where it was found."""
    found = dict.fromkeys(problems.CODES, "control/problems.py")
    found |= dict.fromkeys((reports.EXPIRED, reports.NOT_AT_TARGET), "control/sync/reports.py")
    found |= {code: "edge_runtime/sql/session.py" for _, code in session._CODES}
    found |= dict.fromkeys(termination.REASONS, "edge_runtime/dispatch/termination.py")
    for source in [*ROOT.glob("control/**/*.py"), *ROOT.glob("edge_runtime/**/*.py")]:
        found |= {code: str(source.relative_to(ROOT)) for code in raised(source)}
    return found


def documented() -> list[str]:
    return ENTRY.findall((ROOT / "docs" / "errors.md").read_text("utf-8"))


def test_every_code_has_an_entry() -> None:
    there = set(documented())
    assert {code: where for code, where in codes().items() if code not in there} == {}


def test_no_entry_is_left_over() -> None:
    assert [code for code in documented() if code not in codes()] == []


def test_no_code_has_two_entries() -> None:
    listed = documented()
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("code", documented())
def test_an_entry_says_cause_and_cure(code: str) -> None:
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    entry = text.split(f"#### `{code}`\n")[1].split("\n#")[0]
    cause, _, cure = entry.partition("*Cure:*")
    assert len(cause.split()) >= 3
    assert cure.strip() or code == "client_gone"
