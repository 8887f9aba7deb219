"""What was compiled is used with the very sources that it was compiled from, by the same Python; else Python runs."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from edge_runtime.built import parts
from edge_runtime.built.compiled_modules import FRONT, SETTING, STAMP, SUFFIX, BuiltPart, CompiledModules
from scripts.compile_front import MODULES, path_of, sources
from tests.support.built_parts import needs_compiled
from tests.support.environment import without_settings

ROOT = Path(__file__).parents[3]


class House:
    """A folder with sources, and what is said to be built from them. What has the code isn't code: loading it fails."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.built = root / "built"
        self.built.mkdir()
        self.sources = {"house/a.py": "A = 1\n", "house/b.py": "B = 2\n"}
        (root / "house").mkdir()
        for name, text in self.sources.items():
            (root / name).write_text(text)
        for name in ("house.a", "group__mypyc"):
            (self.built / f"{name}{SUFFIX}").write_text("no code")
        self.stamp(suffix=SUFFIX)

    def stamp(self, suffix: str) -> None:
        digests = {name: sha256(text.encode()).hexdigest() for name, text in self.sources.items()}
        stamp = {"suffix": suffix, "modules": ["group__mypyc", "house.a"], "sources": digests}
        (self.built / STAMP).write_text(json.dumps(stamp))

    def find(self, **environ: str) -> BuiltPart:
        """How the part runs; no module of it is found where it doesn't."""
        made = CompiledModules(str(self.built), str(self.root), environ)
        assert made.find_spec("house.b") is None
        assert made.find_spec("house.a") is None or made.part().runs
        return made.part()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_nothing_is_built(tmp_path: Path) -> None:
    made = CompiledModules(str(tmp_path / "none"), str(tmp_path), {})
    assert made.part() == BuiltPart(False, "it isn't built; `just compile` builds it")
    assert made.find_spec("house.a") is None


def test_the_setting_has_python_run(house: House) -> None:
    assert house.find(**{SETTING: "1"}) == BuiltPart(False, f"{SETTING} is set")
    # An empty variable counts as unset.
    assert house.find(**{SETTING: ""}).stale


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda house: (house.root / "house/b.py").write_text("B = 3\n"), "another house/b.py"),
        (lambda house: (house.root / "house/a.py").unlink(), "another house/a.py"),
        (lambda house: house.stamp(suffix=".cpython-312-x86_64-linux-gnu.so"), "another Python (.cpython-312"),
        (lambda house: (house.built / f"house.a{SUFFIX}").unlink(), "files of what was built are missing"),
        (lambda house: (house.built / f"house.b{SUFFIX}").touch(), "there are others beside them"),
        (lambda house: (house.built / STAMP).unlink(), "no stamp"),
        (lambda house: (house.built / STAMP).write_text("{"), "no stamp"),
        (lambda house: (house.built / STAMP).write_text("{}"), "no stamp"),
        (lambda house: (house.built / STAMP).write_text("[]"), "no stamp"),
    ],
)
def test_what_does_not_fit_is_not_used_and_told(house: House, change: Callable[[House], object], why: str) -> None:
    change(house)
    part = house.find()
    assert (part.runs, part.stale) == (False, True)
    assert why in part.why
    assert part.why.endswith("; `just compile` builds it anew")


def test_what_cannot_be_loaded_is_not_used_and_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of all is loaded first: then it is still open whether Python runs."""
    made = CompiledModules(str(house.built), str(house.root), {})
    monkeypatch.setattr(sys, "meta_path", [made, *sys.meta_path])
    assert made.find_spec("house.a") is None
    assert (made.part().runs, made.part().stale) == (False, True)
    assert made.part().why.startswith("what is built can't be loaded: ")


def test_the_same_sources_fit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledModules, "_load", lambda made: None)
    made = CompiledModules(str(house.built), str(house.root), {})
    spec = made.find_spec("house.a")
    assert spec is not None
    assert spec.origin == str(house.built / f"house.a{SUFFIX}")
    assert made.part() == BuiltPart(True)


def test_how_a_part_runs_is_told() -> None:
    assert parts.told("front", {"compiled": True, "why": None, "stale": False}) == "the front is compiled"
    told = parts.told("front", {"compiled": False, "why": "it isn't built", "stale": False})
    assert told == "the front is not compiled: it isn't built"
    assert parts.document()["front"]["compiled"] is FRONT.part().runs


def test_what_is_compiled_is_there_and_its_sources_have_what_it_imports() -> None:
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        assert [name for name in MODULES if path_of(name) is None] == []
        found = sources(MODULES)
    finally:
        os.chdir(before)
    assert {"edge_runtime/web/parser.py", "control/protocol/wire.py", "edge_runtime/web/__init__.py"} <= set(found)
    # Imported by one of them through others, and by none of them.
    assert "edge_runtime/ipc/zygote_client.py" in found
    assert "edge_runtime/web/server.py" not in found


def test_what_is_compiled_has_no_coroutine() -> None:
    """A cancellation of mypyc's ends in a warning, or in an error where warnings are errors."""
    trees = {name: ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text("utf-8")) for name in MODULES}
    coroutines = [
        (name, node.name)
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef)
    ]
    assert coroutines == []


LOOK = """
import importlib, json, sys
from edge_runtime.built.compiled_modules import FRONT
modules = [importlib.import_module(name) for name in sys.argv[1:]]
print(json.dumps([FRONT.part(), [module.__spec__.origin for module in modules]]))
"""


def look(root: Path, **environ: str) -> tuple[list[object], list[str]]:
    """How the front runs in a folder, and the files that its modules say they are from."""
    command = [sys.executable, "-P", "-c", LOOK, *MODULES]
    done = subprocess.run(
        command,
        env=without_settings() | {"PYTHONPATH": str(root)} | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    part, files = json.loads(done.stdout)
    return part, files


@needs_compiled
def test_the_compiled_modules_are_what_runs_and_a_changed_source_has_python_run(tmp_path: Path) -> None:
    part, files = look(ROOT)
    assert part == [True, "", False]
    # mypyc names one that another one has imported by a path that isn't there.
    place = str(ROOT / "edge_runtime/built/front")
    assert [file for file in files if not (file.startswith(place) and file.endswith(SUFFIX))] == []

    sources_of = [str(tmp_path / f"{name.replace('.', '/')}.py") for name in MODULES]
    for package in ("edge_runtime", "control"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert look(tmp_path)[0] == [True, "", False]
    assert look(tmp_path, **{SETTING: "1"}) == ([False, f"{SETTING} is set", False], sources_of)
    with (tmp_path / "edge_runtime/ipc/frames.py").open("a") as file:
        file.write("# changed\n")
    part, files = look(tmp_path)
    assert part[0] is False
    assert part[2] is True
    assert "another edge_runtime/ipc/frames.py" in str(part[1])
    assert files == sources_of


def test_the_package_has_them_found() -> None:
    assert FRONT in sys.meta_path
