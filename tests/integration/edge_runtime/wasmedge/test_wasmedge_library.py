"""WasmEdge's library: which one it must be, and what it writes and reads by itself. Each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime import wasmedge
from tests.support.deadlines import scaled


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=Path(wasmedge.__file__).parents[2],
        timeout=scaled(60),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("d.LIBRARY = 'libwasmedge-nowhere.so.0'", "can't be loaded"),
        ("d.LIBRARY = 'libc.so.6'", "is not WasmEdge's library"),
        ("d.VERSION = '0.99.0'", "is WasmEdge 0.14.1; this program works with 0.99.0 alone"),
    ],
)
def test_a_missing_or_other_library_says_what_to_install(change, message):
    code = f"""
import edge_runtime.wasmedge.c_api as d
{change}
try:
    d._open()
except ImportError as error:
    print(type(error).__name__, error)
"""
    ran = python(code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("LibraryMissing ")
    assert message in ran.stdout
    assert "apt-get install -y libwasmedge0" in ran.stdout


def test_wasmedge_writes_nothing_to_stdout():
    code = """
from edge_runtime.wasmedge import *
config = Config(memory_pages=1)
try:
    Module.from_bytes(b"nonsense", config)
except LoadError:
    pass
"""
    ran = python(code)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_names_live_as_long_as_the_library_reads_them():
    """With the C library's malloc, which writes into what is freed at once."""
    code = """
from edge_runtime.guests.host_functions import host
from edge_runtime.wasmedge import *
from edge_runtime.wasmedge.memory_imports import import_memories
from tests.guests.build import guest
config = Config(memory_pages=9)
program = Program(Module.from_bytes(import_memories(guest("echo")), config), config, host().imports, [])
with program.open(Memory()):
    print("linked")
"""
    ran = python(code, PYTHONMALLOC="malloc")
    assert (ran.returncode, ran.stdout) == (0, "linked\n"), ran.stderr
