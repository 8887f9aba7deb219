"""Mends in each page what a screen reader or a keyboard can't do with the theme's markup, as axe finds it."""

from pathlib import Path

from sphinx.application import Sphinx

MENDED = {
    # The captions of the navigation are headings, and of no level.
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    # Two landmarks of a kind have to be told apart.
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="This page">',
    '<aside class="toc-drawer no-toc">': '<aside class="toc-drawer no-toc" aria-label="This page">',
    # A long line is scrolled by the keyboard, too.
    "<pre>": '<pre tabindex="0">',
    '<div id="search-results">': '<h1>Search</h1>\n<div id="search-results">',
}


def _mend(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = was = page.read_text("utf-8")
        for old, new in MENDED.items():
            text = text.replace(old, new)
        if text != was:
            page.write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
