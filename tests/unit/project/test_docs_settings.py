"""docs/settings.md against the settings that the code has: names, defaults, and nothing that isn't there."""

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from control import settings as control_settings
from control.protocol import setting_names, settings_in_force
from edge_runtime import settings as edge_settings
from scripts import settings_page

DOCS = Path(__file__).resolve().parents[3] / "docs"
WORDS = {
    "no default": "",
    "the system's folder for temporary files": tempfile.gettempdir(),
    "the number of processors": str(edge_settings.processors()),
    "twice the number of processors": str(2 * edge_settings.processors()),
}


def documented(heading: str) -> dict[str, str]:
    """Variable and default of each entry of the list under a heading."""
    text = (DOCS / "settings.md").read_text("utf-8")
    section = re.split(r"^## ", text.split(f"## {heading}")[1], maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.findall(r"^- `(SKERRY_[A-Z_]+)` \((?:default (.+?)|(required|no default))\): ", section, re.MULTILINE)
    return {name: WORDS.get(default or word, (default or word).strip("`")) for name, default, word in entries}


def defaults(settings: Any, prefix: str) -> dict[str, str]:
    found = {}
    for field in dataclasses.fields(settings):
        value: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        found[prefix + field.name.upper()] = (
            "required" if value is dataclasses.MISSING else "" if value in (None, ()) else shown(value)
        )
    return found


def shown(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@pytest.mark.parametrize(
    ("heading", "settings", "prefix"),
    [
        ("Control", control_settings.ControlSettings, "SKERRY_"),
        ("The edge", edge_settings.EdgeSettings, "SKERRY_EDGE_"),
    ],
)
def test_every_setting_is_documented_with_its_default(heading: str, settings: Any, prefix: str) -> None:
    assert documented(heading) == defaults(settings, prefix)


def test_every_setting_is_known_and_nothing_else() -> None:
    """What isn't known is warned of as a mistake."""
    ours = {f"SKERRY_{field.name.upper()}" for field in dataclasses.fields(control_settings.ControlSettings)}
    ours |= {f"SKERRY_EDGE_{field.name.upper()}" for field in dataclasses.fields(edge_settings.EdgeSettings)}
    assert set(setting_names.SETTINGS.split()) == ours
    assert settings_page.NAMES.read_text("utf-8") == settings_page.names(), "run `just settings`"
    text = (DOCS / "settings.md").read_text("utf-8")
    named = {name for name in re.findall(r"`(SKERRY_[A-Z_]*[A-Z])`", text) if not name.startswith("SKERRY_TEST_")}
    assert named == settings_in_force.KNOWN


def test_the_page_is_what_the_tables_say() -> None:
    text = settings_page.PAGE.read_text("utf-8")
    assert settings_page.page(text) == text, "run `just settings`"
    stale = text.replace("seconds for which a poll is held at most", "seconds for which a poll is held")
    assert stale != text
    assert settings_page.page(stale) == text


@pytest.mark.parametrize("more", [0, 2])
def test_a_setting_without_its_place_on_the_page_is_found(more: int) -> None:
    text = settings_page.PAGE.read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("- `SKERRY_HOLD`"))
    with pytest.raises(ValueError, match="SKERRY_HOLD"):
        settings_page.page(text.replace(f"{line}\n", f"{line}\n" * more))


def test_every_variable_that_the_code_reads_is_documented() -> None:
    text = (DOCS / "settings.md").read_text("utf-8")
    root = DOCS.parent
    sources = [*root.glob("control/**/*.py"), *root.glob("edge_runtime/**/*.py")]
    # SKERRY_FUNCTION is what a guest gets.
    used = {v for source in sources for v in re.findall(r"\bSKERRY_[A-Z_]*[A-Z]\b", source.read_text("utf-8"))}
    assert {variable for variable in used - {"SKERRY_FUNCTION", "SKERRY_EDGE"} if f"`{variable}`" not in text} == set()
