"""The tests that are known to fail by chance are few, and none for long."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

from tests.support import flaked, flaked_file

ROOT = Path(__file__).parents[3]


def test_each_entry_holds_for_a_week_and_a_test_has_one() -> None:
    told = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, check=True).stdout
    day = datetime.fromtimestamp(int(told), UTC).date()
    assert flaked.faults(flaked_file.read(ROOT / "tests" / "flaked.toml"), day) == []


def test_ci_run_lets_one_test_flake_and_no_other_recipe_does() -> None:
    assert 'export SKERRY_TEST_FLAKED="' in (ROOT / ".ci" / "run").read_text()
    assert "SKERRY_TEST_FLAKED" not in (ROOT / "Justfile").read_text()
