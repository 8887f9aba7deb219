"""What Debian's own checker says about the packages; what it is told to leave alone has its reason beside it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.packages.built import NAMES, Package
from tests.packages.machine import ROOT

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("name", NAMES)
def test_lintian_finds_no_error_and_no_warning(built: dict[str, Package], name: str) -> None:
    as_root = ["--allow-root"] if os.geteuid() == 0 else []
    command = ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "20", *as_root, str(built[name].file)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, f"{checked.stdout}{checked.stderr}"
    # Also an override that overrides nothing any more.
    assert checked.stdout == ""


@pytest.mark.parametrize("name", NAMES)
def test_each_override_has_a_reason(name: str) -> None:
    lines = Path(ROOT, "packaging", "debian", f"{name}.lintian-overrides").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert [line for line in lines if not line.startswith(("# ", f"{name}: "))] == []
