"""What a process keeps of memory, and takes at once."""

import subprocess
import sys

from tests.support.deadlines import scaled

FILLED = """
import ctypes, resource, sys
from edge_runtime import malloc

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc(1)
if sys.argv[1] == "filled":
    malloc.fill(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(1500):
    libc.memset(ctypes.c_void_p(libc.malloc(4000)), 1, 4000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of a process that writes 6 MB for the first time."""
    ran = subprocess.run(
        [sys.executable, "-c", FILLED, how], capture_output=True, text=True, timeout=scaled(100), check=True
    )
    return int(ran.stdout)


def test_memory_that_was_taken_at_once_costs_no_fault_for_each_page() -> None:
    assert faults("empty") > 1400
    assert faults("filled") < 100
