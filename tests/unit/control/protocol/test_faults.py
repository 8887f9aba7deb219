"""Fault points while a test arms them, or takes them away: whoever comes by then goes on."""

import os
from pathlib import Path

import pytest

from control.protocol import faults


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def held(_: float) -> None:
        pytest.fail("it is held")

    monkeypatch.setattr(faults, "_FOLDER", str(tmp_path))
    monkeypatch.setattr(faults.time, "sleep", held)
    return tmp_path


def test_a_point_whose_file_is_empty_yet_is_passed(folder: Path) -> None:
    (folder / "here").touch()
    faults.reach("here")
    assert [path.name for path in folder.iterdir()] == ["here"]


def test_a_point_that_is_taken_away_in_that_moment_is_passed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "here").write_text("kill")
    unlink = Path.unlink

    def cleared(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        for left in folder.iterdir():
            unlink(left)

    monkeypatch.setattr(Path, "unlink", cleared)
    faults.reach("here")
    assert not list(folder.iterdir())


def test_an_armed_point_holds(folder: Path) -> None:
    (folder / "here").write_text("hold")
    with pytest.raises(pytest.fail.Exception, match="it is held"):
        faults.reach("here")
    assert (folder / "here.held").read_text() == f"{os.getpid()}\n"
