"""Docstrings here are plain English with code between single backticks, and no reStructuredText: this makes them so.

Without it a lone `*` or `|` in a docstring would be a warning of Sphinx's, and each warning fails the build.
"""

import re
from typing import Any

from sphinx.application import Sphinx


def escape(line: str) -> str:
    """`line` as reStructuredText: what is between single or double backticks is code, all else is text."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", line)
    return "".join(
        f"``{part.strip('`')}``" if index % 2 else re.sub(r"([\\*|_`])", r"\\\1", part)
        for index, part in enumerate(parts)
    )


def _docstring(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    lines[:] = [escape(line.strip()) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True}
