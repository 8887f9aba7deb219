"""Pages of libraries that are mapped and not needed are dropped, and everything still works."""

import subprocess
import sys

from tests.support.deadlines import scaled

CODE = """
import re
from pathlib import Path
from edge_runtime.guests import guest
from edge_runtime import mapped_pages
from edge_runtime.children import warmup

def of_llvm():
    blocks = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(int(re.search(r"Rss: +(\\d+)", b)[1]) - int(re.search(r"Anonymous: +(\\d+)", b)[1])
               for b in blocks if "libLLVM" in b.partition(chr(10))[0])

guest.prepare()
warmup.rehearse()
before = of_llvm()
mapped_pages.drop()
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
