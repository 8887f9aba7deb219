"""Appends to some pages what is made at each build: the commands and the HTTP API, from the program itself."""

import json
from collections.abc import Callable
from pathlib import Path

import cli_reference
import http_reference
from sphinx.application import Sphinx

DECISIONS = "```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"

PAGES: dict[str, Callable[[], str]] = {
    "reference/cli": cli_reference.markdown,
    "reference/http-api": http_reference.markdown,
    "adr/README": lambda: DECISIONS,
}


def _append(app: Sphinx, page: str, source: list[str]) -> None:
    if page in PAGES:
        source[0] += "\n" + PAGES[page]()


def _write_openapi(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        text = json.dumps(http_reference.document(), indent=2, sort_keys=True)
        Path(app.outdir, "openapi.json").write_text(text + "\n", "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _append)
    app.connect("build-finished", _write_openapi)
    return {"parallel_read_safe": True}
