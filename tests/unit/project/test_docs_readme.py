"""The README, the other pages at the root and the docs against the program: commands and options that exist, recipes
that are there, links that lead somewhere."""

import re
import shlex
from pathlib import Path

import click
import pytest

from control.cli import main as cli
from edge_runtime.cli.main import main as edge

ROOT = Path(__file__).resolve().parents[3]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md")), ROOT / "examples" / "README.md"]
PROGRAMS: dict[str, click.Command] = {"skerry": cli.skerry, "skerry-edge": edge}
FENCED = re.compile(r"^ *```([a-z]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:skerry|skerry-edge|\.venv/bin/skerry) [^`]+)`")


def command_lines() -> list[tuple[str, str]]:
    """Page and command line of each command of ours in a block of code or between backticks."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        blocks = [block for language, block in FENCED.findall(text) if language in ("", "sh", "text")]
        lines = [line.strip() for block in blocks for line in block.splitlines()]
        for line in [*lines, *INLINE.findall(text)]:
            words = re.sub(r"^(\w+=\S+ )+", "", line)
            if words.removeprefix(".venv/bin/").split(" ")[0] in PROGRAMS:
                found.append((str(page.relative_to(ROOT)), words.removeprefix(".venv/bin/")))
    return found


def problem(line: str) -> str:
    """What is wrong with a command line; empty where every command and option of it exists."""
    words = [word for word in shlex.split(line.replace("…", "")) if word]
    command = PROGRAMS[words.pop(0)]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            return f"there is no command {words[0]}"
        command = found
        words.pop(0)
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in known | {"--help"}]
    return f"{command.name} has no {unknown}" if unknown else ""


def test_the_readme_has_commands_of_ours() -> None:
    assert len([line for page, line in command_lines() if page == "README.md"]) > 8


def test_every_command_in_the_docs_exists() -> None:
    lines = command_lines()
    assert len(lines) > 300
    assert [(page, line, wrong) for page, line in lines if (wrong := problem(line))] == []


@pytest.mark.parametrize("line", ["skerry nosuch", "skerry node nosuch", "skerry status --nosuch", "skerry-edge joyn"])
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    assert problem(line)


def test_every_link_leads_somewhere() -> None:
    link = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
    targets = [(page, target) for page in PAGES for target in link.findall(page.read_text("utf-8"))]
    assert len(targets) > 300
    missing = [
        (str(page.relative_to(ROOT)), target)
        for page, target in targets
        if not target.startswith("https://") and not (page.parent / target).exists()
    ]
    assert missing == []


def test_every_file_of_python_that_is_named_by_its_path_is_there() -> None:
    path = re.compile(r"`((?:tests|scripts|bench|control|edge_runtime)/[\w/]+\.py)`")
    # A decision that was superseded names what there was.
    pages = [page for page in PAGES if page.parent.name != "adr"]
    named = [(str(page.relative_to(ROOT)), name) for page in pages for name in path.findall(page.read_text("utf-8"))]
    assert len(named) > 30
    assert [(page, name) for page, name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "examples/README.md"])
def test_the_recipes_that_a_page_names_exist(page: str) -> None:
    recipes = set(re.findall(r"^([a-z][a-z-]*)\b.*:", (ROOT / "Justfile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^|&& )just ([a-z][a-z-]*)\b", (ROOT / page).read_text("utf-8"), re.MULTILINE))
    assert named
    assert named <= recipes
