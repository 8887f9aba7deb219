"""A state directory on a disk without any room: a node is started there, to serve for reading."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deadlines import scaled

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from edge_runtime.state import State

path = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path)], check=True)

def fill():
    with (path / "fill").open("ab", 0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            print(error.strerror)

with State(path, 1.0):
    pass
fill()
with State(path, 1.0):
    print((path / "lock").read_text().strip() == str(os.getpid()))
os.truncate(path / "lock", 0)
fill()
with State(path, 1.0):
    print(repr((path / "lock").read_text()))
"""


def test_the_lock_needs_no_room(tmp_path: Path) -> None:
    """It says who has it where an earlier run has said so; else it is a lock all the same."""
    who = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    namespace = ["unshare", *who, "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may have no mounts of its own here")
    command = [*namespace, sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=scaled(60))
    full = "No space left on device"
    assert ran.stdout.splitlines() == [full, "True", full, "''"], ran.stderr
    assert "can't say which process has it" in ran.stderr
