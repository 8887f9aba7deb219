"""What worker processes import is rewritten once, before they start."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.assertion import rewrite

from tests.support import rewritten


@pytest.fixture
def config(tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a run of all tests in `a` and of one file in `b`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for name in ("a/conftest.py", "a/inner/test_one.py", "a/other.py", "b/test_two.py", "b/test_three.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("def test_it():\n    assert 1\n")
    given = SimpleNamespace(dir=tmp_path)
    args = ["a", "b/test_two.py::test_it"]
    return SimpleNamespace(stash=pytestconfig.stash, invocation_params=given, args=args, getini=pytestconfig.getini)


def kept(folder: Path) -> dict[str, Path]:
    return {path.name.partition(".")[0]: path for path in folder.rglob(f"*{rewrite.PYC_TAIL}")}


def test_all_that_a_run_imports_is_kept_as_pytest_finds_it(tmp_path: Path, config: Any) -> None:
    rewritten.keep(config)
    found = kept(tmp_path)
    assert set(found) == {"conftest", "test_one", "test_two"}
    code = rewrite._read_pyc(tmp_path / "a" / "inner" / "test_one.py", found["test_one"])
    assert code is not None
    assert "@pytest_ar" in code.co_names


def test_what_is_kept_stays_until_its_text_is_another(tmp_path: Path, config: Any) -> None:
    rewritten.keep(config)
    before = {name: path.stat().st_mtime_ns for name, path in kept(tmp_path).items()}
    changed = tmp_path / "b" / "test_two.py"
    changed.write_text("def test_it():\n    assert 2\n")
    os.utime(changed, ns=(before["test_two"] + 10**9,) * 2)
    rewritten.keep(config)
    after = {name: path.stat().st_mtime_ns for name, path in kept(tmp_path).items()}
    assert {name for name in after if after[name] != before[name]} == {"test_two"}
    assert rewrite._read_pyc(changed, kept(tmp_path)["test_two"]) is not None


def test_nothing_is_kept_where_python_keeps_no_bytecode(
    tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    rewritten.keep(config)
    assert kept(tmp_path) == {}
