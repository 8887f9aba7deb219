"""Hazard 4 of WasmEdge: on the interpreter endless recursion takes memory and no stack. The limit on a worker's data
ends it: by a signal that the front sees, with the machine's memory untouched."""

import hashlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import edge_runtime
from tests.guests.build import guest
from tests.support.deadlines import scaled

ROOT = Path(edge_runtime.__file__).parents[1]
LIMIT = 600 * 1024**2

RUN = f"""
import resource, sys
from control.protocol.manifest import Manifest
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.guests.guest import LoadedFunction, Request, prepare
prepare()
function = LoadedFunction.load(LocalFunction("f", 1, sys.argv[2], Manifest(), "", wasm=sys.argv[1]))
resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))
function.call(Request("GET"))
"""


def test_endless_recursion_ends_at_the_limit_on_data(tmp_path: Path) -> None:
    wasm = guest("overflow")
    path = tmp_path / "overflow.wasm"
    path.write_bytes(wasm)
    command = [sys.executable, "-c", RUN, str(path), hashlib.sha256(wasm).hexdigest()]
    measured = (
        "import resource, subprocess, sys; ran = subprocess.run(sys.argv[1:]);"
        "print('status', ran.returncode, 'peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", measured, *command], capture_output=True, text=True, cwd=ROOT, timeout=scaled(100)
    )
    found = re.search(r"status (-?\d+) peak (\d+)", ran.stdout)
    assert found is not None, ran.stderr
    assert int(found[1]) in (-signal.SIGABRT, -signal.SIGSEGV), ran.stderr
    assert int(found[2]) * 1024 < 2 * LIMIT
