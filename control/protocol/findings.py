"""What `skerry doctor` and `skerry-edge doctor` find: how a finding is told, and which one is the worst. Pure.

Both packages use it. A check is known by its name, which `docs/reference/doctor.md` has.
"""

from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Struct, structs

Level = Literal["ok", "note", "wrong"]
"""`ok`: as it should be. `note`: it works now; somebody should look at it. `wrong`: something doesn't work, or will
soon not."""
LEVELS: tuple[Level, ...] = ("ok", "note", "wrong")


class Finding(Struct, frozen=True):
    """What a check has found of one thing."""

    check: str
    level: Level
    what: str
    """What there is, and of which thing, in a sentence without its point."""
    cure: str = ""
    """What to do: a command where one does it. Empty where nothing is to be done."""


def worst(findings: Iterable[Finding]) -> Level:
    """Return the worst level of these; `ok` where there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def document(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings as `--json` has them."""
    return {"worst": worst(findings), "findings": [structs.asdict(finding) for finding in findings]}


def lines(findings: Iterable[Finding], *, verbose: bool) -> list[str]:
    """Return the findings as a person reads them, the worst first, a line each, and at the end how many there were.

    What is as it should be has a line only with `verbose`.
    """
    listed = sorted(findings, key=lambda finding: -LEVELS.index(finding.level))
    counts = {level: sum(finding.level == level for finding in listed) for level in LEVELS}
    told = [
        f"{finding.level:5}  {finding.check}: {finding.what}{_cure(finding)}"
        for finding in listed
        if verbose or finding.level != "ok"
    ]
    told.append(f"{counts['wrong']} wrong, {counts['note']} to note, {counts['ok']} as they should be")
    return told


def _cure(finding: Finding) -> str:
    point = "" if finding.what.endswith("?") else "."
    return f"{point} Do: {finding.cure}" if finding.cure else ""
