"""What editors are told of a project: clang itself, which is in Zig, has no error by the flags that clangd reads.

tests/integration/control/cli/test_editors.py asks the servers of other languages.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from control.cli import main as cli
from control.cli.project import authoring, project_files, toolchains
from tests.support.deadlines import scaled


def errors(folder: Path, *flags: str) -> str:
    """What clang says of main.c and skerry.h, each by itself, without what Zig adds."""
    sources = ["main.c", "skerry.h", "skerry_direct.h"]
    command = [sys.executable, "-m", "ziglang", "clang", "-fsyntax-only", *flags, *sources]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=scaled(120)).stderr


def test_clang_has_no_error_in_a_new_c_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["function", "new", "orders", "--lang", "c"]) == 0
    folder = tmp_path / "orders"
    flags = (folder / toolchains.FLAGS).read_text().splitlines()
    assert errors(folder, *flags) == ""
    # The test's own test: without them clang knows no WASI.
    assert "error" in errors(folder, "--target=wasm32-wasip1", "-nostdinc")
    assert toolchains.FLAGS in (folder / ".gitignore").read_text().splitlines()
    # In a clone, which hasn't them, the build writes them; those that somebody wrote stay.
    build = project_files.read(folder).functions[0].build
    (folder / toolchains.FLAGS).unlink()
    toolchains.write_editor_files(folder, build)
    assert (folder / toolchains.FLAGS).read_text().splitlines() == flags
    (folder / toolchains.FLAGS).write_text("mine")
    toolchains.write_editor_files(folder, build)
    assert (folder / toolchains.FLAGS).read_text() == "mine"


RUST = "{rustc} --edition 2021 -C opt-level=2 -o function.wasm main.rs"


LIBRARY = Path("lib/rustlib/src/rust/library")


def compiler(sysroot: Path, monkeypatch: pytest.MonkeyPatch, *, source: bool) -> None:
    """Have a compiler whose standard library is in `sysroot`, with its source or without."""
    if source:
        (sysroot / LIBRARY / "std").mkdir(parents=True)
    program = sysroot / "bin" / "rustc"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho {sysroot}\n")
    program.chmod(0o755)
    monkeypatch.setattr(toolchains, "_rustc", lambda _: [str(program), "--target", "wasm32-wasip1"])


def test_a_rust_project_has_the_standard_library_of_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sysroot = tmp_path / "project", tmp_path / "usr"
    source = sysroot / LIBRARY
    folder.mkdir()
    compiler(sysroot, monkeypatch, source=False)
    # Without its source rust-analyzer would find errors everywhere.
    toolchains.write_editor_files(folder, RUST)
    assert list(folder.iterdir()) == []
    (source / "std").mkdir(parents=True)
    toolchains.write_editor_files(folder, RUST)
    written = json.loads((folder / toolchains.RUST_PROJECT).read_text())
    crate = {"root_module": "main.rs", "edition": "2021", "deps": [], "target": "wasm32-wasip1"}
    assert written == {"sysroot": str(sysroot), "sysroot_src": str(source), "crates": [crate]}
    (folder / toolchains.RUST_PROJECT).write_text("mine")
    toolchains.write_editor_files(folder, RUST)
    assert (folder / toolchains.RUST_PROJECT).read_text() == "mine"


@pytest.mark.parametrize(
    "build", ["", "make", "{zig} build-exe main.zig", "{rustc} -o function.wasm", "cargo build main.rs", "{rustc}"]
)
def test_other_projects_have_no_such_files(build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    compiler(tmp_path / "usr", monkeypatch, source=True)
    toolchains.write_editor_files(folder, build)
    assert list(folder.iterdir()) == []


def test_the_files_of_one_machine_are_not_in_git() -> None:
    for language, file in (("c", toolchains.FLAGS), ("rust", toolchains.RUST_PROJECT)):
        assert file in (authoring.examples() / language / ".gitignore").read_text().splitlines()


def test_every_go_file_says_its_system() -> None:
    for file in (authoring.examples() / "go").glob("*.go"):
        assert re.match(r"//go:build wasip1( && snapshot)?\n\n", file.read_text())
