"""The memory of a process and of those below it."""

import subprocess
import sys

from edge_runtime import node_health

MIB = 1 << 20


def test_what_a_grandchild_has_counts():
    inner = f"x = bytearray({40 * MIB}); x[::4096] = b'1' * len(x[::4096]); print('ready', flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        # Without it, the child has less.
        assert node_health.memory_of(child.pid) > 40 * MIB
        child.communicate(b"\n")


def test_a_process_that_has_ended_has_none():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert node_health.memory_of(child.pid) == 0
