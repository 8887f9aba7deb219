"""The README's table of requirements points at tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CRITERIA = [f"{requirement}.{criterion}" for requirement in range(1, 8) for criterion in range(1, 5)]
ROW = re.compile(r"^\| (\d\.\d) \| (.+) \| \[(test_r\d_\d)\]\((tests/acceptance/test_r\d_\w+\.py)\) \|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, str]]:
    """Prefix and file of each criterion's tests."""
    found = ROW.findall((ROOT / "README.md").read_text())
    assert len(found) == len({row[0] for row in found})
    return {number: (prefix, file) for number, _, prefix, file in found}


def test_the_table_has_every_criterion_once() -> None:
    assert list(rows()) == CRITERIA


@pytest.mark.parametrize("number", CRITERIA)
def test_a_criterions_tests_are_where_the_table_says(number: str) -> None:
    prefix, file = rows()[number]
    assert prefix == f"test_r{number.replace('.', '_')}"
    defined = re.compile(rf"^(?:async )?def ({prefix}_\w+)", re.MULTILINE)
    assert defined.findall((ROOT / file).read_text())
    others = [path for path in (ROOT / "tests").rglob("test_*.py") if path != ROOT / file]
    assert not [path for path in others if defined.search(path.read_text())]
