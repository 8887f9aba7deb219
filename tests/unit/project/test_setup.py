"""`scripts/setup`, with which every recipe begins, on a checkout that is another user's."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NOBODY = 65534


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A folder that everybody may enter, with what the script reads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("scripts/setup", "scripts/common.sh", "lock/run.lock", "lock/dev.lock", "pyproject.toml"):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        yield folder


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_root_by_sudo_leaves_no_files_in_a_users_checkout(checkout: Path, tmp_path: Path) -> None:
    for name, script in (("id", "echo 0"), ("stat", 'case "$2" in %u) echo 1000 ;; *) echo ada ;; esac')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    before = files(checkout)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SUDO_UID": "1000"}
    done = subprocess.run([checkout / "scripts/setup", "run"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{checkout} is ada's, who couldn't use it any more with files of root's in it" in done.stderr
    assert files(checkout) == before


def test_whose_the_environment_is_is_said_where_it_cannot_be_written(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv").chmod(0o555)
    before = files(checkout)
    user = NOBODY if os.geteuid() == 0 else None
    done = subprocess.run(
        [checkout / "scripts/setup", "run"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, user=user
    )
    assert done.returncode == 1
    assert f"{checkout}/.venv is {Path(checkout).owner()}'s, and " in done.stderr
    assert f"sudo chown -R {'nobody' if user else Path(checkout).owner()}: {checkout}" in done.stderr
    assert files(checkout) == before
