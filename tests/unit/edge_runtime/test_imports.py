"""What the front of a node maps, and what the zygote has imported before it forks."""

import ast
import subprocess
import sys
from pathlib import Path

from edge_runtime.children import zygote
from tests.support.deadlines import scaled

PARSERS = {"cffi.cparser", "pycparser"}
"""To parse declarations at each start would take 40 ms and 3 MB of each process (`scripts.bindings`)."""


def test_the_front_maps_no_wasmedge_and_no_libsql() -> None:
    """Each costs memory, and nothing that parses what others made belongs into the process that is on the network."""
    code = """
import sys, click
from edge_runtime.cli.main import main
main.get_command(click.Context(main), "run")
from edge_runtime.sync import agent
from edge_runtime import front
mapped = open("/proc/self/maps").read()
print("libwasmedge" in mapped, "libLLVM" in mapped, "libsql" in mapped, "apsw" in mapped,
      *[name for name in sys.modules if name.startswith("edge_runtime.wasmedge")])
print(*sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=scaled(60), check=True)
    found, modules = ran.stdout.splitlines()
    assert found.split() == ["False"] * 4
    assert "edge_runtime.front" in modules.split()
    assert not PARSERS & set(modules.split())


def test_the_zygote_has_all_that_it_and_its_children_import_later() -> None:
    """Its user may not read the program's files any more, and an upgrade may have replaced them."""
    code = """
import sys
from edge_runtime.children import zygote
zygote._imports(lambda: print("step", end=" "))
print(*sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=scaled(60), check=True)
    parts = [
        part for part in ast.walk(ast.parse(Path(zygote.__file__).read_text())) if isinstance(part, ast.FunctionDef)
    ]
    later = [line for part in parts for line in ast.walk(part) if isinstance(line, ast.ImportFrom)]
    found = {f"{line.module}.{name.name}" for line in later for name in line.names}
    assert "edge_runtime.children.checkpointer" in found
    assert found <= set(ran.stdout.split())
    # The front waits as long for each step as it else would for all.
    assert ran.stdout.split().count("step") > 4
    assert not PARSERS & set(ran.stdout.split())
