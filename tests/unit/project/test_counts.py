"""One is told as one: a count goes with its word by `counted`, wherever it is shown or logged."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WORDS = (
    "artifacts attempts calls callers causes cases changes commands connections deletions errors functions groups "
    "lines lists messages minutes days nodes objects operators others pages parameters probes processes records "
    "releases requests revisions rows seals spans statements steps syncs tables threads times tokens versions views "
    "webhooks workers"
)
COUNT = r"%d|\{(?!counted\(|\{?(?:[a-z]+\.)?[A-Z_]{3})(?:[^{}]|\{[^{}]*\})*\}?\}"
"""What is written into a text; a name in capitals is a limit, which is more than one."""
COUNTED = re.compile(rf"(?:{COUNT}) (?:[a-z]+ )?(?:{'|'.join(WORDS.split())})\b")
FINE = {
    "{left.days} days": "only where it is more than one",
    "{most} rows": "a limit",
    "{number} webhooks": "a limit that is reached",
    "{count} times": "only where it is more than one",
    "{{ one.times }} times": "only where it is more than one",
    "{{ cause.groups|length }} groups": "only where it is more than one",
    "{attempts} times": "more than one",
    "{self._idle.total_seconds() / 60:.0f} minutes": "a setting of many",
    "{attempt} times": "the last one of several",
    "{halved} times": "told to nobody but a log of refused numbers",
    "{calls} calls": "more than a node can have",
    "{rate(most)} calls": "a rate",
    "{num(total)} calls": "a share of all",
    "{self._limit} connections": "a limit",
    "%d connections": "a limit",
    "{self._limits.rows} rows": "a limit",
    "{memory.minimum} pages": "more than are allowed",
    "{minimum} pages": "more than are allowed, or none",
    "{pages} pages": "of a reservation of many",
    "{count} header lines": "more than are allowed",
    "{hosts} times": "more than once",
    "{len(tables)} callers": "more than are allowed",
    "{have} older records": "have is a count with its word",
    # Verbs and names.
    "{method} requests": "a verb",
    "{whose} views": "whose is a count with its words",
    "{trigger} deletes rows": "a verb",
    "{self.name} calls": "a verb",
    "{} if times": "no text",
    '{**g, "functions": list(functions)} if functions': "no text",
}
"""What looks so, and why it is right."""


def test_no_count_has_the_plural_in_its_text() -> None:
    files = [path for side in ("control", "edge_runtime") for path in (ROOT / side).rglob("*.py")]
    files += (ROOT / "control" / "console" / "templates").glob("*.html")
    found = {
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for match in COUNTED.finditer(line)
        if match[0] not in FINE
    }
    assert found == set()
