"""What the codes of errors mean and what to do, from docs/errors.md, which a wheel has too."""

import re
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape

_ENTRY = re.compile(r"^#### `([a-z0-9_]+)`\n+(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\*(.+?)\*|\[([^\]]+)\]\(([^)]+)\)")


@cache
def explanations() -> dict[str, list[Markup]]:
    """The paragraphs of each code's explanation."""
    packaged = Path(__file__).parents[1] / "_docs"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "docs"
    text = (folder / "errors.md").read_text(encoding="utf-8")
    return {code: [_paragraph(part) for part in told.strip().split("\n\n")] for code, told in _ENTRY.findall(text)}


def is_explained(code: str) -> bool:
    """Whether there is a page `/errors/CODE`."""
    return code in explanations()


def _paragraph(text: str) -> Markup:
    """A paragraph of the page's Markdown: code, emphasis and links. Of its links, those to codes lead somewhere."""
    made, at, text = Markup(), 0, " ".join(text.split())
    for found in _INLINE.finditer(text):
        made += escape(text[at : found.start()]) + _inline(*found.groups())
        at = found.end()
    return made + escape(text[at:])


def _inline(code: str | None, strong: str | None, stressed: str | None, link: str | None, to: str | None) -> Markup:
    if code is not None:
        return Markup("<code>{}</code>").format(code)
    if link is None or to is None:
        return Markup("<b>{}</b>").format(strong or stressed)
    if re.fullmatch("#[a-z0-9_]+", to):
        return Markup('<a href="/errors/{}">{}</a>').format(to[1:], _paragraph(link))
    return _paragraph(link)
