"""docs/reference/other-hosts.md, with which tests compare what they find to be different."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "other-hosts.md"

Test = TypeVar("Test", bound=Callable[..., None])


class Differences:
    """A section of the page, and which of its entries tests show."""

    def __init__(self, section: str) -> None:
        _, _, rest = PAGE.read_text().partition(f"\n## {section}\n")
        self.entries = re.findall(r"^- \*\*(.+?)\*\*:", rest.partition("\n## ")[0], re.MULTILINE)
        self.shown: list[str] = []

    def shows(self, entry: str) -> Callable[[Test], Test]:
        """Mark a test that shows what an entry says."""
        if entry not in self.shown:
            self.shown.append(entry)
        return lambda test: test
