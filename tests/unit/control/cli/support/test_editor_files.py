"""What editors are told of a project: clang itself, which is in Zig, has no error by the flags that clangd reads."""

import subprocess
import sys
from pathlib import Path

import pytest

from control.cli import main as cli
from control.cli.support import project, toolchains


def errors(folder: Path, *flags: str) -> str:
    """What clang says of main.c and skerry.h, each by itself, without what Zig adds."""
    sources = ["main.c", "skerry.h", "skerry_direct.h"]
    command = [sys.executable, "-m", "ziglang", "clang", "-fsyntax-only", *flags, *sources]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120).stderr


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
    build = project.read(folder).functions[0].build
    (folder / toolchains.FLAGS).unlink()
    toolchains.write_flags(folder, build)
    assert (folder / toolchains.FLAGS).read_text().splitlines() == flags
    (folder / toolchains.FLAGS).write_text("mine")
    toolchains.write_flags(folder, build)
    assert (folder / toolchains.FLAGS).read_text() == "mine"


@pytest.mark.parametrize("build", ["", "make", "{zig} build-exe main.zig"])
def test_other_projects_have_no_flags(build: str, tmp_path: Path) -> None:
    toolchains.write_flags(tmp_path, build)
    assert list(tmp_path.iterdir()) == []
