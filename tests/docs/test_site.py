"""The site that `just docs` has built is whole, has every command and call in it, and needs nothing from elsewhere."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from control.cli import main as cli
from control.web.routes import OPERATIONS
from edge_runtime.cli.main import main as edge

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "site"
CONF = ROOT / "docs" / "conf.py"
RECIPE = ["-m", "sphinx", "-W", "--keep-going", "--quiet", "--fresh-env", "--builder", "html"]


@pytest.fixture(scope="module")
def site() -> Path:
    assert SITE.is_dir(), "`just docs` builds the site, and runs these tests"
    return SITE


def commands(command: click.Command, path: str) -> Iterator[str]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, f"{path} {name}")


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {str(page) for page in pages if not (site / page).exists()} == set()


def test_the_pages_are_in_the_order_of_their_kinds(site: Path) -> None:
    captions = re.findall(r'class="caption-text">([^<]+)<', (site / "index.html").read_text("utf-8"))
    assert captions[:4] == ["Tutorial", "How-to guides", "Reference", "Explanation"]


def test_every_command_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text("utf-8")
    expected = [*commands(cli.skerry, "skerry"), *commands(edge, "skerry-edge")]
    assert len(expected) > 40
    assert [path for path in expected if f'id="{path.replace(" ", "-")}"' not in page] == []


def test_every_call_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "http-api.html").read_text("utf-8")
    assert [o for o in OPERATIONS if f">{o.method} {o.path}<" not in page] == []
    described = json.loads((site / "openapi.json").read_text("utf-8"))
    assert set(described["paths"]) == {"/v1/poll", *(operation.path for operation in OPERATIONS)}


def test_the_search_finds_a_word_of_a_page(site: Path) -> None:
    assert "zygote" in (site / "searchindex.js").read_text("utf-8")
    assert (site / "search.html").exists()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = re.compile(
        r'<(?:script|img|iframe)[^>]*\bsrc="(?:https?:)?//|<link[^>]*\bhref="(?:https?:)?//|@import|url\(h'
    )
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert [str(file) for file in files if loaded.search(file.read_text("utf-8"))] == []


def test_what_axe_found_in_the_theme_is_mended_in_each_page(site: Path) -> None:
    """tests/console/test_docs_site.py asks axe itself, of some pages."""
    mended: dict[str, str] = runpy.run_path(str(ROOT / "docs" / "_ext" / "accessible_pages.py"))["MENDED"]
    found = {
        (str(page.relative_to(site)), old)
        for page in site.rglob("*.html")
        for old, new in mended.items()
        if old in page.read_text("utf-8").replace(new, "")
    }
    assert found == set()


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    """In one build, which costs seconds: each of the links is a warning, and there is no other one that fails it."""
    assert f"{' '.join(RECIPE)} --doctree-dir .skerry/docs docs site" in (ROOT / "Justfile").read_text("utf-8")
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text(f"import runpy\nglobals().update(runpy.run_path({str(CONF)!r}))\n")
    (source / "second.md").write_text("# Second\n\n## There\n")
    links = ["nosuch.md", "second.md#no-anchor", "#none-of-mine", "nosuch.txt"]
    lines = ["# First", "[good](second.md#there)", *(f"[bad]({link})" for link in links)]
    (source / "index.md").write_text("\n\n".join([*lines, "```{toctree}\nsecond\n```\n"]))
    command = [sys.executable, *RECIPE, str(source), str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode != 0
    warnings = [line for line in built.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == len(links), built.stderr
    for link in links:
        assert any(link.rpartition("#")[2] in warning for warning in warnings), (link, built.stderr)
