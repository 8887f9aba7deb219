"""A test that fails by chance in `.ci/run`, by real runs of pytest on a tiny project."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import pytest

from tests.support import flaked, flaked_file

ROOT = Path(__file__).parents[3]
PLUGIN = """
from tests.support import flaked_runs

def pytest_configure(config):
    flaked_runs.join(config)
"""
# Plugins that it doesn't need take most of the time that pytest's start takes.
INI = """
[pytest]
asyncio_mode = auto
addopts = -p pytest_asyncio.plugin -p pytest_timeout -p xdist.plugin
markers = never_retry: it never runs again
"""
HEAD = """
import os, pathlib, pytest

RAN = pathlib.Path(__file__).parent / "ran"

def test_that_passes():
    pass

@pytest.fixture(scope="module")
def lent():
    return []

def fails(lent, name, condition):
    assert lent == []
    lent.append(name)
    with (RAN / name).open("a") as ran:
        ran.write(os.environ.get("SKERRY_TEST_SEED", "") + ",")
    if condition((RAN / name).read_text().count(",")):
        print("SKERRY_TEST_SEED=41")
        raise AssertionError(f"{name} is late")

"""
ONCE = """
@pytest.mark.parametrize("key", ["p"])
async def test_once(lent, key):
    fails(lent, "once", lambda time: time == 1)
"""
ALWAYS = """
def test_once(lent):
    fails(lent, "once", lambda time: True)
"""
BUSY = """
def test_once(lent):
    fails(lent, "once", lambda time: time in (1, 15))
"""
SECOND = """
def test_second():
    assert (RAN / "second").exists() or (RAN / "second").touch()
"""
MARKED = """
@pytest.mark.never_retry
class TestRows:
    def test_once(self, lent):
        fails(lent, "once", lambda time: time == 1)
"""
LOGGED_AT_ITS_END = """
@pytest.fixture
def node(tmp_path):
    yield
    (tmp_path / "node.log").write_text("a\\nTraceback (most recent call last):\\n")

def test_once(lent, node):
    fails(lent, "once", lambda time: time == 1)
"""
CRASHED = """
def test_once(lent):
    try:
        fails(lent, "once", lambda time: time == 1)
    except AssertionError:
        os._exit(3)
"""
UNIT = "tests/unit/test_a.py"


@dataclass
class Project:
    """A project in a folder, and what its tests were run for."""

    folder: Path

    def run(self, path: str, text: str, *options: str, ci: bool = True) -> tuple[int, list[str]]:
        """Run its tests by pytest; return status and lines."""
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        (place.parent / "ran").mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        environment.pop("SKERRY_TEST_SEED", None)
        environment.pop("SKERRY_TEST_FLAKED", None)
        if ci:
            environment["SKERRY_TEST_FLAKED"] = str(self.state)
        command = [sys.executable, "-m", "pytest", *options, path]
        ran = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout.rstrip().splitlines()

    @property
    def state(self) -> Path:
        return self.folder / "state.toml"

    def ran(self, name: str) -> list[str]:
        """The seeds that runs of a test were given."""
        [found] = self.folder.glob(f"**/ran/{name}")
        return found.read_text().split(",")[:-1]

    def noted(self, monkeypatch: pytest.MonkeyPatch) -> list[flaked.Entry]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.folder / "cache"))
        return flaked_file.read(flaked_file.machine_file())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "pytest.ini").write_text(INI)
    return Project(tmp_path)


def test_a_test_that_failed_once_is_told_of_and_the_run_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a worker process, as nearly all tests run; those of the failures that stand run in pytest's own."""
    status, lines = project.run(UNIT, HEAD + ONCE, "--numprocesses=1")
    assert status == 0, lines
    name = f"{UNIT}::test_once[p]"
    assert re.fullmatch(r"=+ 1 passed, 1 flaked in .*", lines[-1]), lines[-1]
    said = "it failed once, then passed 10 times alone and 10 times beside a busy program"
    assert lines[-2] == f"FLAKED {name}, seed 41: {said}"
    assert any("AssertionError: once is late" in line for line in lines)
    assert project.ran("once") == ["", *["41"] * 20]
    [entry] = project.noted(monkeypatch)
    assert (entry.name, entry.seed, entry.cause, entry.said) == (name, "41", "", "AssertionError: once is late")
    # A later run of the same .ci/run: a second test that flakes stops it.
    status, lines = project.run("tests/unit/test_b.py", HEAD + SECOND)
    assert status == 1
    assert "no test has flaked: another test has flaked in this .ci/run" in lines
    assert project.noted(monkeypatch) == [entry]


def test_nothing_runs_again_outside_ci_run(project: Project) -> None:
    status, lines = project.run(UNIT, HEAD + ONCE, ci=False)
    assert status == 1
    assert re.fullmatch(r"=+ 1 failed, 1 passed in .*", lines[-1])
    assert len(project.ran("once")) == 1


@pytest.mark.parametrize(
    ("text", "runs", "why"),
    [
        (ALWAYS, 2, "it passed only 0 of 10 runs alone"),
        (BUSY, 15, "it passed only 3 of 10 runs beside a busy program"),
        (ONCE + SECOND, 1, "2 tests failed"),
        (MARKED, 1, "it is marked never_retry"),
        (LOGGED_AT_ITS_END, 1, "the log of a program has 'Traceback (most recent call last)'"),
        (CRASHED, 1, "its process crashed"),
    ],
    ids=["always", "busy", "two", "marked", "logged at its end", "crashed"],
)
def test_a_failure_that_stands(
    project: Project, text: str, runs: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by what a run alone can tell; tests/unit/support/test_flaked.py has the rules that go by a test's name."""
    status, lines = project.run(UNIT, HEAD + text, *(["--numprocesses=1"] if text == CRASHED else []))
    assert status == 1
    assert [line for line in lines if line.startswith("no test has flaked")] == [f"no test has flaked: {why}"]
    assert re.search(r"[12] failed, 1 passed", lines[-1])
    assert len(project.ran("once")) == runs
    assert project.noted(monkeypatch) == []
    assert not project.state.exists()


def test_a_machine_says_what_the_tree_lacks_until_it_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tests").mkdir()
    made = flaked.entry("tests/unit/test_a.py::test_a", date(2026, 3, 1), "", "Error")
    assert flaked_file.notice(tmp_path) == []
    flaked_file.add([made])
    flaked_file.add([made])
    for _ in range(2):
        assert flaked_file.notice(tmp_path)[:-1] == ["FLAKED on 2026-03-01: tests/unit/test_a.py::test_a"]
    (tmp_path / "tests" / "flaked.toml").write_text(flaked.text([replace(made, cause="the clock")]))
    assert flaked_file.notice(tmp_path) == []
    # The cause was found, and the entry has gone from the tree.
    (tmp_path / "tests" / "flaked.toml").unlink()
    assert flaked_file.notice(tmp_path) == []
