"""What `skerry doctor` and `skerry-edge doctor` find: how a finding is shown, and which one is the worst. Pure.

Both packages use it. `docs/reference/doctor.md` lists the checks by name.
"""

from collections.abc import Iterable
from typing import Any, Literal

from msgspec import Struct, structs

Level = Literal["ok", "note", "wrong"]
"""`ok`: all is well. `note`: it works now, but somebody should look at it. `wrong`: something doesn't work, or soon
won't."""
LEVELS: tuple[Level, ...] = ("ok", "note", "wrong")


class Finding(Struct, frozen=True):
    """What a check found out about one thing."""

    check: str
    level: Level
    what: str
    """What was found, and about which thing, in a sentence without its final period."""
    cure: str = ""
    """What to do: a command where there is one. Empty where nothing needs to be done."""


def worst(findings: Iterable[Finding]) -> Level:
    """Return the worst level of the findings; `ok` if there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def document(findings: list[Finding]) -> dict[str, Any]:
    """Return the findings as `--json` shows them."""
    return {"worst": worst(findings), "findings": [structs.asdict(finding) for finding in findings]}


def lines(findings: Iterable[Finding], *, verbose: bool) -> list[str]:
    """Return the findings for people: one line each, the worst first, and their number at the end.

    Findings that are `ok` get a line only with `verbose`.
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
