"""What a stranger looks for first is there: licence, metadata, files at the root."""

import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trove_classifiers

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "examples/README.md")]
PICTURES = sorted((ROOT / "docs" / "images").glob("*.svg"))
NAMESPACE = "http://www.w3.org/2000/svg"
FIRST = ("README.md", "LICENSE", "NOTICE", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


@pytest.mark.parametrize("name", FIRST)
def test_the_file_is_there(name: str) -> None:
    assert (ROOT / name).read_text("utf-8").strip()


def test_the_licence_is_the_one_that_the_metadata_names() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE", "NOTICE"]
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert licence.split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]
    assert "END OF TERMS AND CONDITIONS" in licence


def test_the_classifiers_are_known_ones() -> None:
    classifiers = PROJECT["classifiers"]
    assert set(classifiers) <= trove_classifiers.classifiers
    assert len(classifiers) == len(set(classifiers))
    assert "Typing :: Typed" in classifiers
    # The expression says it; a classifier beside it is refused by package indexes.
    assert not [classifier for classifier in classifiers if classifier.startswith("License")]


def test_the_urls_are_documentation() -> None:
    """The project has no public address yet, and a registry's isn't its own."""
    assert {urlsplit(url)[:2] for url in PROJECT["urls"].values()} == {
        ("https", "wasmedge.org"),
        ("https", "docs.turso.tech"),
    }


@pytest.mark.parametrize("package", ["control", "edge_runtime"])
def test_the_types_of_the_package_are_for_others_too(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_markdown_are_short(page: Path) -> None:
    assert [line for line in page.read_text("utf-8").splitlines() if len(line) > 120] == []


def test_the_readme_shows_pictures_and_each_picture_is_shown() -> None:
    """Those of the console are shown in its page, too."""
    shown = re.findall(r"!\[[^]]+\]\((docs/images/[^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    also = re.findall(r"!\[[^]]+\]\((images/[^)]+)\)", (ROOT / "docs" / "console.md").read_text("utf-8"))
    assert {"docs/images/terminal.svg", "docs/images/console-overview.png"} == set(shown)
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "images").iterdir()}
    assert {*shown, *(f"docs/{name}" for name in also)} == there


def test_pictures_of_the_console_are_small() -> None:
    for path in (ROOT / "docs" / "images").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 200_000, path


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_small_and_refers_to_nothing_outside(picture: Path) -> None:
    text = picture.read_text("utf-8")
    assert len(text.encode()) < 200_000
    addresses = [address for address in re.findall(r"https?://[^\s\"'<>&]+", text) if address != NAMESPACE]
    # What is left are addresses that were typed on the terminal.
    assert [address for address in addresses if not address.startswith("http://127.0.0.1:")] == []
    assert re.findall(r"@import|@font-face|\bhref=|url\((?!#)", text) == []


def test_hooks_run_what_setup_has_installed() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert re.findall(r"^ *- repo: (.+)$", hooks, re.MULTILINE) == ["local"]
    entries = re.findall(r"^ *entry: (\S+)", hooks, re.MULTILINE)
    assert entries == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy"]
    assert len(re.findall(r"^ *language: system$", hooks, re.MULTILINE)) == len(entries)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160
