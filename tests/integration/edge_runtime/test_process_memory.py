"""Memory that a process takes at once, and pages of libraries that it drops, after which everything still works."""

import subprocess
import sys

from tests.support.deadlines import scaled

CODE = """
import re
from pathlib import Path
from edge_runtime.guests import guest
from edge_runtime import process_memory
from edge_runtime.children import warmup

def of_llvm():
    blocks = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(int(re.search(r"Rss: +(\\d+)", b)[1]) - int(re.search(r"Anonymous: +(\\d+)", b)[1])
               for b in blocks if "libLLVM" in b.partition(chr(10))[0])

guest.prepare()
warmup.rehearse()
before = of_llvm()
process_memory.drop_mapped()
print(before, of_llvm())
warmup.rehearse()
from edge_runtime.guests.function_code import compile_artifact
import sys
compile_artifact(warmup.NOTHING, Path(sys.argv[1]), 0)
print("works")
"""


def test_the_pages_of_the_compiler_are_dropped_and_come_back(tmp_path):
    """As the zygote does before its first fork."""
    ran = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, timeout=scaled(200), check=True
    )
    before, after, *rest = ran.stdout.split()
    assert int(before) > 4096, "KiB that linking it has read"
    assert int(after) < int(before) // 4
    assert rest == ["works"]


FILLED = """
import ctypes, resource, sys
from edge_runtime import process_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc(1)
if sys.argv[1] == "filled":
    process_memory.fill_heap(8 << 20)
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
