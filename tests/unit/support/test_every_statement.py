"""The plugin by which a run fails where a statement of sql/queries never came to the database."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import every_statement

ROOT = Path(__file__).parents[3]
NAMES = sorted(name for names in every_statement.names().values() for name in names)
TESTS = """\
import os, pathlib, pytest

NAMES = {names}

@pytest.mark.parametrize("part", [0, 1])
def test_statements_come(part):
    # As a proxy does which a worker of pytest has started.
    with pathlib.Path(os.environ["SKERRY_TEST_STATEMENTS"]).open("a") as file:
        file.write("".join(name + "\\n" for name in NAMES[part::2]))
"""


def run(folder: Path, names: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a suite with the plugin, whose tests have these statements carried out."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_come.py").write_text(TESTS.format(names=names))
    plugin = ["-p", "tests.support.every_statement", "-p", "xdist", "-p", "no:cacheprovider"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *plugin,
        "--rootdir",
        folder,
        "-c",
        folder / "pytest.ini",
        *arguments,
        folder,
    ]
    # Other plugins take longer to be imported than all of this runs.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_run_in_which_all_came_passes(tmp_path: Path) -> None:
    ran = run(tmp_path, NAMES)
    assert ran.returncode == 0, ran.stdout
    assert "never came" not in ran.stdout


def test_a_run_fails_whose_workers_all_lack_a_statement_and_names_it(tmp_path: Path) -> None:
    left_out = NAMES[len(NAMES) // 2]
    ran = run(tmp_path, [name for name in NAMES if name != left_out], "--numprocesses=2")
    assert ran.returncode == 1, ran.stdout
    assert "2 passed" in ran.stdout.splitlines()[-1]
    named = [line for line in ran.stdout.splitlines() if line in NAMES]
    assert named == [left_out]


def test_each_statement_is_noted_by_its_name_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "statements"
    monkeypatch.setenv(every_statement.FILE, str(file))
    first, second = (every_statement.noting(), every_statement.noting())
    assert first is not None
    assert second is not None
    texts = list(every_statement.names().items())
    first(texts[0][0])
    first(texts[0][0])
    first("SELECT 'nothing of ours'")
    second(texts[1][0])
    assert file.read_text().splitlines() == [*texts[0][1], *texts[1][1]]
    assert set(every_statement.missing(file)) == set(NAMES) - {*texts[0][1], *texts[1][1]}


def test_nobody_is_told_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(every_statement.FILE, raising=False)
    assert every_statement.noting() is None
