"""docs/reference/other-hosts.md, with which tests compare what they find to be different."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "other-hosts.md"


def page_rows(section: str) -> list[str]:
    """The names of the entries in a section of the page."""
    _, _, rest = PAGE.read_text().partition(f"\n## {section}\n")
    return re.findall(r"^- \*\*(.+?)\*\*:", rest.partition("\n## ")[0], re.MULTILINE)
