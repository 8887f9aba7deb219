"""What error codes mean and what to do about them, from docs/errors.md, which wheels include."""

import re
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_ENTRY = re.compile(r"^#### `([a-z0-9_]+)`\n+(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
_MARKDOWN = MarkdownIt("commonmark", {"html": False})


@cache
def explanations() -> dict[str, Markup]:
    """Return the explanation of each code, as HTML."""
    packaged = Path(__file__).parents[1] / "_docs"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "docs"
    text = (folder / "errors.md").read_text(encoding="utf-8")
    return {code: _html(told) for code, told in _ENTRY.findall(text)}


def is_explained(code: str) -> bool:
    """Return whether there is a page `/errors/CODE`."""
    return code in explanations()


def _html(text: str) -> Markup:
    parsed = _MARKDOWN.parse(text)
    for block in parsed:
        _lead(block.children or [])
    # HTML in the text is escaped, and we write the page ourselves.
    return Markup(_MARKDOWN.renderer.render(parsed, _MARKDOWN.options, {}))  # noqa: S704


def _lead(parts: list[Token]) -> None:
    """Point links to other codes at their pages, and remove other links, which lead to pages of the docs."""
    leads = False
    for part in parts:
        if part.type == "link_open":
            code = str(part.attrs["href"])
            leads = code.startswith("#")
            part.attrs["href"] = f"/errors/{code.removeprefix('#')}"
        if part.type in ("link_open", "link_close"):
            part.hidden = not leads
