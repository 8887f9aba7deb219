"""Each package's imports are what its extra installs: a node's packages don't include control's."""

import ast
import functools
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.statements import statements

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"control", "edge_runtime"}


def third_party(source: str) -> set[str]:
    """The top-level modules that `source` imports, wherever in the file, without Python's own and ours."""
    names = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - OURS


def modules_of(requirements: list[str]) -> set[str]:
    """The top-level modules that these requirements install themselves, without what they depend on."""
    wanted = {normal(re.split(r"[^A-Za-z0-9_.-]", item)[0]) for item in requirements}
    return {module for module, owners in installed().items() if wanted & {normal(owner) for owner in owners}}


@functools.cache
def installed() -> Mapping[str, list[str]]:
    """The packages that each top-level module here belongs to; half a second."""
    return importlib.metadata.packages_distributions()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def imported_by(package: str) -> set[str]:
    return set().union(*(third_party(path.read_text()) for path in (ROOT / package).rglob("*.py")))


BASE = PROJECT["dependencies"]
EXTRAS = PROJECT["optional-dependencies"]


def test_third_party_sees_every_form():
    source = "import a.b, os\nfrom c.d import e\nfrom . import f\ndef g():\n    import h\n    from control import i\n"
    assert third_party(source) == {"a", "c", "h"}


@pytest.mark.parametrize(("package", "extra"), [("control", "control"), ("edge_runtime", "edge")])
def test_what_a_package_imports_is_in_its_extra(package, extra):
    missing = imported_by(package) - modules_of(BASE + EXTRAS[extra])
    assert not missing, f"pyproject.toml's extra `{extra}` lacks what installs {sorted(missing)}"


@pytest.mark.parametrize(("package", "extra"), [("control", "control"), ("edge_runtime", "edge")])
def test_an_extra_has_nothing_that_its_package_does_not_import(package, extra):
    own = [item for item in EXTRAS[extra] if not item.startswith("skerry[")]
    unused = [item for item in own if not modules_of([item]) & imported_by(package)]
    assert not unused, f"nothing in {package} imports {unused}"


def test_the_dependencies_are_what_both_packages_import():
    # What is in the protocol is imported by both.
    both = imported_by("control") & imported_by("edge_runtime") | imported_by("control/protocol")
    assert {item for item in BASE if not modules_of([item]) & both} == set()


def test_control_takes_the_edges_packages_too():
    """Its checks of modules and schema changes run the edge's code."""
    assert "skerry[edge]" in EXTRAS["control"]
    everything = BASE + EXTRAS["edge"] + EXTRAS["control"]
    assert len(everything) == len(set(everything)), "a package is named once"
