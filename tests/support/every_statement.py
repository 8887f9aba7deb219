"""A plugin of pytest, `-p tests.support.every_statement`: the run fails where a statement of sql/queries never came to
the database, and names it.

The proxies before the database (`tests.support.cockroachdb`), processes that several workers of pytest start, write the
names of what they have carried out to one file. That a statement was only prepared doesn't count: a test prepares all.
"""

import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import pytest

from control.storage import queries

FILE: Final = "SKERRY_TEST_STATEMENTS"
"""The environment's variable with the path of the file: a name such as ``releases.group`` in each line."""


def names() -> dict[str, list[str]]:
    """What each text of sql/queries is called; the same text may stand there under two names."""
    found: dict[str, list[str]] = {}
    for file in sorted((queries.folder() / "queries").glob("*.sql")):
        for name, text in queries.load(file.stem).items():
            found.setdefault(text, []).append(f"{file.stem}.{name}")
    return found


def noting() -> Callable[[str], None] | None:
    """What is to be told each text that is carried out; None where nobody asks."""
    if not (path := os.environ.get(FILE)):
        return None
    left = names()

    def note(text: str) -> None:
        # At once: a proxy may be killed.
        if (came := left.pop(text, None)) is not None:
            with Path(path).open("a") as file:
                file.write("".join(f"{name}\n" for name in came))

    return note


def missing(path: Path) -> list[str]:
    """The names that aren't in the file at `path`, in order."""
    came = set(path.read_text().splitlines())
    return sorted(name for found in names().values() for name in found if name not in came)


def pytest_configure(config: pytest.Config) -> None:
    """Make the file, before pytest's workers start, which hand its path on."""
    if not hasattr(config, "workerinput"):
        handle, path = tempfile.mkstemp(prefix="skerry-test-statements-")
        os.close(handle)
        os.environ[FILE] = path


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Have a run fail whose tests passed, in whatever way, but that lacks a statement."""
    yield
    if not hasattr(session.config, "workerinput"):
        path = Path(os.environ[FILE])
        if session.exitstatus == pytest.ExitCode.OK and missing(path):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        path.unlink()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what is missing."""
    if not hasattr(terminalreporter.config, "workerinput") and (lacking := missing(Path(os.environ[FILE]))):
        terminalreporter.section("statements of sql/queries that never came to the database")
        for name in lacking:
            terminalreporter.line(name)
