"""The selections of tests that `.ci/run` has: each path is there, and what they are about is in them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.native import library
from scripts.compile_front import MODULES
from tests.support import selections

ROOT = Path(__file__).parents[3]
ASKS_FOR_THE_USER = re.compile(r"\b(?:get[e]?uid|get[e]?gid|st_uid|st_gid|st_mode|chmod|chown|umask)\b")
RUN_ONCE = ("tests/console", "tests/docs", "tests/machines", "tests/packages", "tests/upgrades")
"""Folders that no selection is of: they have runs of their own."""


def covered(path: Path, names: tuple[str, ...]) -> bool:
    inside = {str(parent.relative_to(ROOT)) for parent in (path, *path.parents) if parent.is_relative_to(ROOT)}
    return not inside.isdisjoint(names)


@pytest.mark.parametrize("name", selections.SELECTIONS)
def test_each_path_of_a_selection_has_tests(name: str) -> None:
    for path in selections.SELECTIONS[name]:
        found = ROOT / path.removeprefix("--ignore=")
        assert found.is_file() or [*found.rglob("test_*.py")], path


def test_what_has_a_compiled_counterpart_is_run_uncompiled() -> None:
    packages = {module.split(".")[1] for module in MODULES if module.count(".") > 1} | {library.FOLDER.name}
    assert {"dispatch", "web", "telemetry", "native"} <= packages
    folders = [ROOT / "tests" / kind / "edge_runtime" / name for kind in ("integration", "unit") for name in packages]
    there = [folder for folder in folders if folder.is_dir()]
    assert len(there) > len(packages)
    assert [folder for folder in there if not covered(folder, selections.UNCOMPILED)] == []


def test_what_asks_for_the_user_is_run_as_another_one() -> None:
    files = [
        path
        for path in {*(ROOT / "tests").rglob("test_*.py")} - {Path(__file__)}
        if ASKS_FOR_THE_USER.search(path.read_text("utf-8")) and not covered(path, RUN_ONCE)
    ]
    assert ROOT / "tests" / "security" / "test_fence.py" in files
    assert [path for path in files if not covered(path, selections.USER)] == []


def test_what_is_left_out_of_the_long_versions_has_none() -> None:
    read = re.compile(r"environ.*\bSKERRY_TEST_")
    assert read.search((ROOT / "tests" / "faults" / "test_kill_anywhere.py").read_text("utf-8"))
    for path in selections.ONE_LENGTH:
        assert covered(ROOT / path, selections.FAULTS)
        assert not read.search((ROOT / path).read_text("utf-8")), path


def test_the_command_prints_each_path_once() -> None:
    command = [sys.executable, "-m", "tests.support.selections", "uncompiled", "user"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert len(said) == len(set(said))
    assert [path for path in said if covered((ROOT / path).parent, tuple(said))] == []
    wanted = (*selections.UNCOMPILED, *selections.USER)
    assert [path for path in wanted if not covered(ROOT / path, tuple(said))] == []
    assert {"tests/unit/edge_runtime", "tests/acceptance/test_end_to_end.py"} <= set(said)


def test_a_selection_that_is_not_there_is_no_selection_of_all() -> None:
    command = [sys.executable, "-m", "tests.support.selections", "metadate"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert ran.stdout == ""
