"""Generates from both tables of settings the lists in docs/settings.md and control/protocol/setting_names.py.

The tables are `ControlSettings` in control/settings.py and `EdgeSettings` in edge_runtime/settings.py. The page's
order, headings and prose aren't generated: put ``- `SKERRY_NAME` ():`` where a new setting belongs.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from control.protocol.settings_table import About, about_of
from control.settings import ControlSettings
from edge_runtime.settings import DAY, EdgeSettings

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "settings.md"
NAMES = ROOT / "control" / "protocol" / "setting_names.py"
TABLES: dict[str, Any] = {"SKERRY_": ControlSettings, "SKERRY_EDGE_": EdgeSettings}
"""Each side's table, by the prefix of its variables."""
ENTRY = re.compile(r"^- `(SKERRY_[A-Z_]+)` \(.*?(?=^- |^$|\Z)", re.MULTILINE | re.DOTALL)
UNITS = {"bytes": {1024**4: "TiB", 1024**3: "GiB", 1024**2: "MiB"}, "seconds": {86400: "days", 3600: "hours"}}
SHORTEST_IN_WORDS = 7200
"""The smallest number of bytes or seconds that is also given in words."""


def settings() -> Iterator[tuple[str, "Field[Any]"]]:
    """Yield each setting of both sides, with the name of its variable."""
    for prefix, table in TABLES.items():
        for each in fields(table):
            yield prefix + each.name.upper(), each


def entry(name: str, each: "Field[Any]") -> str:
    """Return a setting's entry on the page."""
    said = about_of(each)
    text = re.sub(r" \(default: [^)]*\)", "", said.text) if said.default else said.text
    if text[1].islower() or text[1] == " ":
        text = text[0].lower() + text[1:]
    if words := in_words(each.default, said.unit):
        text = re.sub(r"(?=[.;:](\s|$))", f" ({words})", text, count=1)
    if words := bounds(said):
        text = f"{text.removesuffix('.')}; {words}."
    told = " ".join(part for part in (text, said.more) if part)
    return textwrap.fill(
        f"- `{name}` ({default(each)}): {told}",
        width=120,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def default(each: "Field[Any]") -> str:
    if each.default_factory is not MISSING:
        return f"default {about_of(each).default}"
    if each.default is MISSING:
        return "required"
    if each.default in (None, "", ()):
        return "no default"
    value = each.default
    return f"default `{int(value) if isinstance(value, float) and value.is_integer() else value}`"


def bounds(said: About) -> str:
    """Return what a number may be; '' where the page's prose says it for all that the table says nothing of."""
    if said.least is None:
        # A node's times are at most a day.
        return "" if said.most is None or said.most == DAY else f"at most {said.most:g}"
    if said.most is None:
        return f"at least {said.least:g}"
    return said.bounds or f"{number(said.least, said.unit)} to {number(said.most, said.unit)}"


def number(value: float, unit: str) -> str:
    return in_words(value, unit) or f"{value:,.0f}"


def in_words(value: Any, unit: str) -> str:
    """Return a long time or a large size in whole days, hours, MiB and so on; '' for others."""
    if not unit or value is MISSING or value < SHORTEST_IN_WORDS:
        return ""
    return next((f"{value // size:g} {word}" for size, word in UNITS[unit].items() if value % size == 0), "")


def page(text: str) -> str:
    """Return the page with its entries from the tables.

    Raises: ValueError, when a setting has no place on it, or more than one.
    """
    entries = {name: entry(name, each) for name, each in settings()}
    there = [found[1] for found in ENTRY.finditer(text)]
    if wrong := sorted(name for name in entries if there.count(name) != 1):
        raise ValueError(f"{', '.join(wrong)}: docs/settings.md must have one entry for each, as - `NAME` ():")
    return ENTRY.sub(lambda found: f"{entries[found[1]]}\n" if found[1] in entries else found[0], text)


def names() -> str:
    """Return the text of the module of names."""
    text = [
        '"""The variables of both sides\' settings. `just settings` makes this of their tables: change those."""',
        "",
        "from typing import Final",
        "",
        'SETTINGS: Final = """',
        textwrap.fill(
            " ".join(sorted(name for name, _ in settings())), 120, initial_indent="    ", subsequent_indent="    "
        ),
        '"""',
        '"""Their names, with spaces between them."""',
    ]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    NAMES.write_text(names(), "utf-8")
