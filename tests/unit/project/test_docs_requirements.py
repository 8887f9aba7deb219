"""docs/requirements.md has every criterion once, in both languages, and names all of its tests and no others."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "requirements.md"
CRITERIA = [f"{requirement}.{criterion}" for requirement in range(1, 8) for criterion in range(1, 5)]
ITEM = re.compile(r"^- \*\*(\d\.\d)\*\* (.+)\n\n((?:  .*\n)+)\n  \[(.+?)\]\((.+?)\):\n((?:  `\w+`,?\n)+)", re.MULTILINE)
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


class Criterion(NamedTuple):
    number: str
    japanese: str
    english: str
    shown: str
    """The path of the tests' file, as the page shows it."""
    link: str
    tests: list[str]


def criteria(page: str) -> list[Criterion]:
    """Return the criteria of a page, in order."""
    return [Criterion(*rest, re.findall(r"`(\w+)`", tests)) for *rest, tests in ITEM.findall(page)]


@functools.cache
def defined() -> dict[Path, list[str]]:
    """Return the tests of criteria in every test module, by its path."""
    test = re.compile(r"^(?:async )?def (test_r\d_\d_\w+)", re.MULTILINE)
    return {path.resolve(): test.findall(path.read_text("utf-8")) for path in (ROOT / "tests").rglob("test_*.py")}


def wrong(found: Criterion) -> list[str]:
    """Return what is wrong with what a criterion says of its tests; nothing where all of it is right."""
    file = PAGE.parent / found.link
    if found.link != f"../{found.shown}" or not file.is_file():
        return [f"there is no {found.link}"]
    prefix = f"test_r{found.number.replace('.', '_')}_"
    named = {path: [test for test in tests if test.startswith(prefix)] for path, tests in defined().items()}
    there = named.pop(file.resolve())
    return [
        *[f"{file.name} has no {test}" for test in found.tests if test not in there],
        *[f"{PAGE.name} doesn't name {test}" for test in there if test not in found.tests],
        *[f"{path.name} has tests of {found.number} too" for path, tests in named.items() if tests],
    ]


def test_the_page_has_every_criterion_once() -> None:
    assert [found.number for found in criteria(PAGE.read_text("utf-8"))] == CRITERIA


@pytest.mark.parametrize("found", criteria(PAGE.read_text("utf-8")), ids=lambda found: found.number)
def test_a_criterion_has_both_languages_and_its_tests(found: Criterion) -> None:
    assert "SHALL" in found.japanese
    assert JAPANESE.search(found.japanese)
    assert not JAPANESE.search(found.english)
    assert found.tests
    assert wrong(found) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("`test_r1_1_a_registration_is_saved_in_the_metadata_db`", "`test_r1_1_nobody_wrote_it`"),
        ("  `test_r1_1_a_registration_is_saved_in_the_metadata_db`,\n", ""),
        ("test_r1_nodes.py", "test_r1_nobody.py"),
    ],
    ids=["a test that isn't there", "a test that isn't named", "a file that isn't there"],
)
def test_a_page_that_differs_from_the_tests_would_be_found(before: str, after: str) -> None:
    page = PAGE.read_text("utf-8")
    assert before in page
    assert [complaint for found in criteria(page.replace(before, after)) for complaint in wrong(found)]
