"""How `just docs` builds this folder into a static site (ADR 29)."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "Skerry"
author = "The authors of Skerry"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "accessible_pages", "generated_pages", "plain_docstrings"]
exclude_patterns = ["_ext", "_static", "images"]

# Each heading is an anchor, down to the error codes of errors.md; a link to one that isn't there is a warning, and
# `just docs` makes errors of warnings.
myst_heading_anchors = 4
# A block's language names the text for the reader and for tests; Pygments doesn't know all of them by heart.
suppress_warnings = [
    "misc.highlighting_failure",
    # errors.md has its codes as headings of the fourth level, under those of the second.
    "myst.header",
]

html_theme = "furo"
html_title = "Skerry"
html_copy_source = False
html_show_sphinx = False
# The site needs nothing from elsewhere: no font, no script, no analytics.
html_static_path = [str(DOCS / "_static")]
html_css_files = ["skerry.css"]
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
