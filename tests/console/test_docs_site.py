"""Pages of the docs' site, as `just docs` builds them, in a real browser: nothing that axe finds, in both themes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.console_browser import chromium, tab

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("index", "tutorial", "console")
"""One of each kind, with commands, with tables and with pictures; all would take a minute to build."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    those = f"include_patterns={','.join(f'{page}.md' for page in PAGES)}"
    recipe = ["-m", "sphinx", "--quiet", "--builder", "html", "-D", those]
    command = [sys.executable, *recipe, str(ROOT / "docs"), str(made)]
    # Links to pages that are left out lead nowhere, which is warned of.
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return made


async def test_each_kind_of_page_can_be_read_by_everybody(site: Path) -> None:
    found: dict[tuple[str, str], list[str]] = {}
    async with chromium() as browser:
        for width, theme in ((1440, "light"), (360, "dark")):
            # Of files, axe itself has the browser say that it may not read their styles once more.
            async with tab(browser, site.as_uri(), width=width, theme=theme, heard="https:") as look:
                for name in (*PAGES, "search"):
                    await look.page.goto(f"{look.url}/{name}.html", wait_until="load")
                    violations = await look.violations()
                    wide = await look.page.evaluate("document.documentElement.scrollWidth")
                    if violations or wide > width:
                        found[name, theme] = [*violations, f"{wide} px of {width}"]
    assert found == {}
