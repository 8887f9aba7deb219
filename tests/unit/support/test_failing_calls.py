"""The tests' own way to have system calls fail: what a rule says happens, in forks too, and nothing else."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forked_programs
from tests.support.failing_calls import FailingCalls

PROGRAM = forked_programs.may_be_forked(
    """
import errno, os, sys
for at in range(4):
    if os.fork() == 0:
        with open(sys.argv[1], "wb") as opened:
            opened.write(b"x")
            opened.flush()
            try:
                os.fsync(opened.fileno())
            except OSError as error:
                os._exit(error.errno)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
)


def codes(path: Path, failing: FailingCalls) -> list[int]:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        env={**os.environ, **failing.environment},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return [int(line) for line in ran.stdout.split()]


@pytest.mark.parametrize("start", ["fork", "exec"])
def test_a_rule_concerns_its_calls_on_its_files(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_programs, "by_exec", start == "exec")
    failing = FailingCalls(tmp_path / "rules")
    assert codes(tmp_path / "one", failing) == [0, 0, 0, 0]
    rule = failing.fail("fsync", "/one", errno.EIO, first=1, times=2)
    assert codes(tmp_path / "other", failing) == [0, 0, 0, 0]
    assert codes(tmp_path / "one", failing) == [0, errno.EIO, errno.EIO, 0]
    assert (rule.seen, rule.concerned) == (4, 2)
    failing.fail("write", "/one", errno.ENOSPC)
    late = failing.delay("fsync", "/one", 0.001, first=3)
    # An exception that the program doesn't expect, and its status.
    assert codes(tmp_path / "one", failing) == [1, 0, 0, 0]
    assert (late.seen, late.concerned) == (3, 0)
    late.end()
