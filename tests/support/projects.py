"""Functions' projects in tests: made by `skerry function new`, built by `skerry function build` where they can be."""

import os
import shutil
from pathlib import Path

import pytest

from control.cli.project import project_files, toolchains
from control.cli.project.authoring import LANGUAGES
from tests.guests.build import CACHE, ROOT
from tests.support.programs import Done, command

COMPILERS = 300.0
"""Seconds for a compiler, which may have its standard library to make first."""
NPM = ROOT / "lock" / "npm" / "node_modules" / ".bin"
"""Where `just toolchains` puts asc."""


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compilers that `just toolchains` installed are found, and Zig keeps what it made of C's library."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{NPM}")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(CACHE / "zig"))
    monkeypatch.setenv("ZIG_LOCAL_CACHE_DIR", str(CACHE / "zig-local"))


def needs(language: str) -> None:
    """Skip the test where the language's compiler isn't there."""
    lacking = toolchains.missing(LANGUAGES[language], ROOT)
    if lacking:
        pytest.skip(f"{lacking}; or all that the tests can use: just toolchains")


async def made(language: str, folder: Path, name: str = "notes") -> project_files.Project:
    """A new project in that language, in a folder that isn't there yet."""
    done = await command("control.cli", "function", "new", name, "--lang", language, "--into", folder)
    assert done.status == 0, done.err
    return project_files.read(folder)


async def built(folder: Path) -> Done:
    """`skerry function build --json` of the project."""
    return await command("control.cli", "function", "build", folder, "--json", limit=COMPILERS)


def schema(of: project_files.Project) -> list[str]:
    """Return the SQL of the project's schema changes, in their order."""
    return [change.sql for change in of.changes()]


def copy(language: str, folder: Path, source: Path) -> project_files.Project:
    """The language's project with another program in it."""
    shutil.copytree(ROOT / "examples" / language, folder)
    found = project_files.read(folder)
    shutil.copyfile(source, folder / next(folder.glob("main.*")).name)
    return found
