"""Each decision in docs/adr has its sections in one order, and the index has every decision once, with its status."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "adr"
PAGES = sorted(FOLDER.glob("0*.md"))
SECTIONS = ["Status", "Context", "Decision", "Rejected", "Consequences"]
ENTRY = re.compile(r"^(\d+)\. \[(.+)\]\((\d{4}-[a-z0-9-]+\.md)\): ([a-z]+)", re.MULTILINE)


def problems(text: str) -> list[str]:
    """What a decision's page lacks."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    found = [] if re.match(r"# \d+\. \S", parts[0]) else ["its title has no number"]
    if parts[1::2] != SECTIONS:
        return [*found, f"its sections are {parts[1::2]}"]
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    found += [f"{name} is empty" for name, body in bodies.items() if len(body.split()) < (1 if name == "Status" else 5)]
    if not re.match(r"\n(Accepted|Superseded|Proposed)\b", bodies["Status"]):
        found.append("its status is none")
    return found


def test_each_decision_has_all_sections() -> None:
    wrong = {page.stem: problems(page.read_text("utf-8")) for page in PAGES}
    assert len(wrong) > 50
    assert {page: lacks for page, lacks in wrong.items() if lacks} == {}


def test_the_index_has_every_decision() -> None:
    index = re.sub(r"\n +", " ", (FOLDER / "README.md").read_text("utf-8"))
    entries = ENTRY.findall(index)
    expected = []
    for page in PAGES:
        text = page.read_text("utf-8")
        number, title = re.fullmatch(r"# (\d+)\. (.+)", text.partition("\n")[0]).groups()  # type: ignore[union-attr]
        assert int(number) == int(page.name[:4])
        status = re.search(r"^## Status\n\n(\w+)", text, re.MULTILINE)
        assert status is not None
        expected.append((number, title, page.name, status[1].lower()))
    assert entries == expected
    assert [int(entry[0]) for entry in entries] == list(range(1, len(PAGES) + 1))


@pytest.mark.parametrize(
    "text",
    [
        "# 1. T\n\n## Status\n\nAccepted.\n\n## Context\n\nIt was so, and so.\n",
        "# 1. T\n\n" + "".join(f"## {name}\n\nAccepted: five words at least.\n\n" for name in reversed(SECTIONS)),
        "# 1. T\n\n" + "".join(f"## {name}\n\n" for name in SECTIONS),
        "# 1. T\n\n" + "".join(f"## {name}\n\nOpen: five words at least.\n\n" for name in SECTIONS),
    ],
    ids=["too few", "order", "empty", "status"],
)
def test_a_page_that_lacks_something_would_be_found(text: str) -> None:
    assert problems(text)
