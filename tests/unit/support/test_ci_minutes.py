"""The table of how long each step of `.ci/run` took."""

from pathlib import Path

import pytest

from tests.support import ci_minutes

STEPS = """\
100 160 setting up
160 400 checks
161 260 programs of others that the tests use
400 - the tests, all of them
"""


def test_each_step_has_its_minutes_and_the_last_one_runs() -> None:
    assert ci_minutes.table(STEPS, 1065.7) == [
        "   1:00  setting up",
        "   4:00  checks",
        "   1:39  programs of others that the tests use",
        "  11:05  the tests, all of them",
        "  16:05  all of .ci/run until now",
    ]


def test_nothing_is_told_outside_of_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ci_minutes.FILE, raising=False)
    assert ci_minutes.told() == []
    (tmp_path / "minutes").write_text(STEPS)
    monkeypatch.setenv(ci_minutes.FILE, str(tmp_path / "minutes"))
    assert [line[9:] for line in ci_minutes.told()[:2]] == ["setting up", "checks"]
