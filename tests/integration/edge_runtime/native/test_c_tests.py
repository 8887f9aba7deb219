"""The C library's own tests (tests/native), for this machine's processor and for the other one."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from scripts import compile_native
from tests.support import native_build

pytestmark = [pytest.mark.never_retry, pytest.mark.timeout(600)]
INPUTS = 3000
EMULATED = int(os.environ.get("SKERRY_TEST_INPUTS", "300"))
"""How many of them an emulated processor takes, for which each costs twenty times as much."""


def run(inputs: int, *command: str | Path) -> None:
    ran = subprocess.run([*command, native_build.CORPUS, str(inputs)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert f"{inputs} others: passed" in ran.stdout


def test_they_pass_here(tmp_path: Path) -> None:
    native_build.c_tests(tmp_path / "tests", compile_native.TARGET)
    run(INPUTS, tmp_path / "tests")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="they have passed on arm64 itself")
@pytest.mark.skipif(bool(native_build.missing("qemu-aarch64")), reason=native_build.missing("qemu-aarch64"))
def test_they_pass_on_arm64(tmp_path: Path) -> None:
    native_build.c_tests(tmp_path / "tests", "aarch64-linux-musl")
    run(EMULATED, "qemu-aarch64", tmp_path / "tests")
