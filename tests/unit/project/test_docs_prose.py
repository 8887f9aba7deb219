"""Pages are narrow, and name only files that are there."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WIDEST = 120
MODULE = re.compile(r"`([\w./-]*\w\.py)(?:::?\w+)?`")
PLACE = re.compile(r"`((?:control|edge_runtime|sql|tests|scripts|bench|examples|docs)/[\w./*-]*)`")


SKIPPED = {"node_modules", "site", "target"}
MADE = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()}
"""What commands make in a checkout: it may be missing."""


def pages() -> list[Path]:
    """Every page of the checkout; folders of tools begin with a point."""
    found = []
    for folder, below, files in os.walk(ROOT):
        below[:] = [name for name in below if not name.startswith(".") and name not in SKIPPED]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


def wide(text: str) -> list[tuple[int, int]]:
    """Number and width of each line that is too wide."""
    return [(number, len(line)) for number, line in enumerate(text.splitlines(), 1) if len(line) > WIDEST]


def missing(text: str) -> list[str]:
    """Names in backticks of modules, and of files and folders of ours, that aren't there."""
    found = [name for name in MODULE.findall(text) if name != "__init__.py" and not (ROOT / name).is_file()]
    places = [place for place in PLACE.findall(text) if not place.endswith(".py") and "NAME" not in place]
    places = [place for place in places if place.rstrip("/") not in MADE]
    found += [place for place in places if not [*ROOT.glob(place)]]
    return found


def test_pages_are_narrow() -> None:
    wrong = {str(page.relative_to(ROOT)): wide(page.read_text("utf-8")) for page in pages()}
    assert len(wrong) > 100
    assert {page: lines for page, lines in wrong.items() if lines} == {}


def test_pages_name_files_that_are_there() -> None:
    ours = [page for page in pages() if page.parent == ROOT or "docs" in page.relative_to(ROOT).parts]
    # It names what there was.
    ours.remove(ROOT / "CHANGELOG.md")
    wrong = {str(page.relative_to(ROOT)): missing(page.read_text("utf-8")) for page in ours}
    assert len(wrong) > 100
    assert {page: names for page, names in wrong.items() if names} == {}


def test_the_map_of_changes_has_thirty_five_each_with_files() -> None:
    text = (ROOT / "docs" / "find-your-way.md").read_text("utf-8")
    entries = re.split(r"^\d+\. \*\*", text, flags=re.MULTILINE)[1:]
    assert len(entries) == 35
    assert [entry.partition("\n")[0] for entry in entries if len(PLACE.findall(entry)) < 2] == []


def test_the_glossary_has_the_words_of_the_requirements() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    requirements = (ROOT / "docs" / "requirements.md").read_text("utf-8")
    words = set(re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]{2,}", glossary))
    assert len(words) > 20
    assert {word for word in words if word not in requirements} == set()


def test_what_is_too_wide_or_missing_would_be_found() -> None:
    assert wide("a\n" + "b" * 121) == [(2, 121)]
    assert missing("`nosuch.py`, `control/nosuch.py`, `sql/nosuch`, `control/protocol/wire.py`, `sql/queries`") == [
        "nosuch.py",
        "control/nosuch.py",
        "sql/nosuch",
    ]
    assert missing("`edge_runtime/native/built`, `bench/results/`, `bench/resulting`") == ["bench/resulting"]
