"""Makes docs/errors.md: the codes of control and of the edge, each with status, message, cause and fix.

Code, status and message are in control/problems.py and edge_runtime/errors.py. Everything else that people need to know
is in scripts/errors/*.md, under a heading for each code; the page has their sections in the same order.
"""

import re
from pathlib import Path

from control import problems
from edge_runtime import errors

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errors.md"
EXPLANATIONS = ROOT / "scripts" / "errors"
SIDES = ("control.md", "edge.md")
ENTRY = re.compile(r"^#### `([a-z0-9_]+)`\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)

HEAD = """\
<!-- `just errors` makes this page of control/problems.py, edge_runtime/errors.py and scripts/errors: change those. -->

# Errors

Every error has a stable code. Control and the edge answer with `application/problem+json` (RFC 9457): `code`, `title`,
`detail` (what happened, to what), and `field` for input. Below is each code with the HTTP status of the answer that has
it, what happened, and its cure. A code without a status is told in another way: of a node's sync, by a command, or to
the function that asked.
"""


def codes() -> set[str]:
    """Return every code of both sides."""
    return problems.CODES.keys() | errors.CODES.keys()


def said(code: str) -> str:
    """Return status and message: in one line if both sides say the same, or only one has the code."""
    control, edge = problems.CODES.get(code), errors.CODES.get(code)
    lines = [line(known.status, known.title) for known in (control, edge) if known is not None]
    if control is None or edge is None or lines[0] == lines[1] or (edge.title == control.title and not edge.status):
        return lines[0]
    return f"{lines[0]}\nAt the edge: {lines[1]}"


def line(status: int, title: str) -> str:
    return f"**{status}** · {title}." if status else f"{title}."


def page(explanations: str) -> str:
    """Return the page; `explanations` are the sections of both sides.

    Raises: ValueError, when a code has no explanation or two, or an explanation has no code or no fix.
    """
    explained = [entry[1] for entry in ENTRY.finditer(explanations)]
    twice = {code for code in explained if explained.count(code) > 1}
    for wrong, why in (
        (codes() - set(explained), "have no explanation in scripts/errors"),
        (set(explained) - codes(), "are explained in scripts/errors, and in neither table"),
        (twice, "are explained twice in scripts/errors"),
        ({entry[1] for entry in ENTRY.finditer(explanations) if "*Cure:* " not in entry[2]}, "have no cure"),
    ):
        if wrong:
            raise ValueError(f"{', '.join(sorted(wrong))}: these codes {why}")
    return f"{HEAD}\n{ENTRY.sub(entry_of, explanations).rstrip()}\n"


def entry_of(found: re.Match[str]) -> str:
    code, text = found[1], found[2].strip()
    # Text before the fix continues the paragraph of status and message.
    gap = "\n\n" if text.startswith("*Cure:*") else "\n"
    return f"#### `{code}`\n\n{said(code)}{gap}{text}\n\n"


def explanations() -> str:
    return "\n".join((EXPLANATIONS / side).read_text("utf-8") for side in SIDES)


if __name__ == "__main__":
    PAGE.write_text(page(explanations()), "utf-8")
