"""The rules of docs/architecture.md about who may import whom, held by reading the source."""

import ast
from pathlib import Path

import pytest

import control
import edge_runtime

ROOT = Path(control.__file__).parents[1]
PACKAGES = (control.__name__, edge_runtime.__name__)
SHARED = {"control.wire", "control.faults"}
LONGEST = 400


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str) -> set[str]:
    """Every module that `source` imports, wherever in the file, each `from a import b` as both a and a.b."""
    package = module.split(".")
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def of_package(imported: set[str], package: str) -> set[str]:
    return {name for name in imported if name == package or name.startswith(package + ".")}


def test_imports_sees_every_form():
    source = (
        "import a.b\nfrom c import d\ndef f():\n  from . import e\n  from .g import h\n  importlib.import_module('i')"
    )
    assert imports(source, "p.q") == {"a.b", "c", "c.d", "p", "p.e", "p.g", "p.g.h", "i"}


@pytest.mark.parametrize("path", [p for name in PACKAGES for p in modules(name)], ids=name_of)
def test_a_module_keeps_to_its_package_and_is_short(path):
    source = path.read_text()
    module = name_of(path)
    imported = imports(source, module)
    if module in SHARED:
        ours = {name for package in PACKAGES for name in of_package(imported, package)}
        assert not ours, f"{module} is shared by both packages, so it imports nothing of ours"
    elif module.startswith("control"):
        assert not of_package(imported, "edge_runtime"), "control and the edge meet on the wire alone"
        native = {n for p in ("cffi", "libsql_experimental", "libsql", "wasmtime") for n in of_package(imported, p)}
        assert not native, "control runs no guest and opens no libsql database"
    else:
        used = of_package(imported, "control")
        names = {f"{shared}.{n.removeprefix(shared + '.')}" for n in used for shared in SHARED if n.startswith(shared)}
        allowed = SHARED | names | {"control"}
        assert used <= allowed, f"the edge imports of control only {sorted(SHARED)}"
        if "control" in used:
            assert used & SHARED, "the edge imports of control only its shared modules"
    assert source.count("\n") <= LONGEST, f"more than {LONGEST} lines: split it by subject"
