"""The page of the checks of `doctor` has each check, in the words of the program; and no finding has another name."""

import re
from pathlib import Path

from control.cli import doctor as control_checks
from edge_runtime.cli import doctor as node_checks
from tests.unit.project.test_docs_readme import problem

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "doctor.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.+) \|$", re.MULTILINE)
COMMAND = re.compile(r"skerry(?:-edge)? [a-z-]+(?: [\w{}\[\]'-]+)*")
NAMED = re.compile(r'Finding\(\s*"(\w+)"')


def named(folder: Path) -> set[str]:
    """The names of checks that findings are made with."""
    return {name for path in folder.glob("*.py") for name in NAMED.findall(path.read_text("utf-8"))}


def test_the_page_has_the_checks_of_each_command() -> None:
    of_both, _, of_a_node = PAGE.partition("## On a node's machine")
    of_control = of_both.partition("## Control and its nodes")[2]
    assert dict(ROW.findall(of_control)) == control_checks.CHECKS
    assert dict(ROW.findall(of_a_node)) == node_checks.CHECKS


def test_each_check_can_find_something() -> None:
    assert named(ROOT / "control" / "cli" / "doctor") == set(control_checks.CHECKS)
    assert named(ROOT / "edge_runtime" / "cli" / "doctor") == set(node_checks.CHECKS)


def test_each_command_of_a_cure_exists() -> None:
    folders = [ROOT / package / "cli" / "doctor" for package in ("control", "edge_runtime")]
    texts = [path.read_text("utf-8") for folder in folders for path in folder.glob("*.py")]
    commands = {command.strip() for text in texts for command in COMMAND.findall(text)}
    assert len(commands) > 20
    assert {command: why for command in commands if (why := problem(command))} == {}
