"""Builds the C library of edge_runtime/native, and the outer module in which its loop runs, for scripts/compile."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from edge_runtime.native import library

ROOT: Final = Path(__file__).resolve().parents[1]
CACHES: Final = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), f"{ROOT}/.skerry/compile/zig")
"""Environment variables that say where Zig caches what it has compiled."""
TARGET: Final = f"{platform.machine()}-linux-gnu.2.34"
WARNINGS: Final = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wundef", "-Wvla", "-Werror")
FLAGS: Final = ("-std=c11", "-O2", "-fPIC", "-fno-sanitize=all", "-fstack-protector-strong", *WARNINGS)

OUTER_WASM: Final = bytes.fromhex(
    "0061736d 01000000"  # wasm, version 1
    "01 04 01 60 00 00"  # a type: no parameters, no results
    "02 16 01 0d 736b657272793a206f75746572 04 6c6f6f70 00 00"  # import "skerry: outer" "loop"
    "03 02 01 00"  # a function of the type
    "07 07 01 03 72756e 00 01"  # exported as "run"
    "0a 06 01 04 00 10 00 0b"  # it calls the imported one
)


def zig(*arguments: str | Path) -> None:
    """Run the C compiler of the `ziglang` wheel.

    Raises: CalledProcessError, when it fails; it has printed why.
    """
    command = [sys.executable, "-m", "ziglang", *map(str, arguments)]
    subprocess.run(command, env={**os.environ, **CACHES}, check=True)  # noqa: S603


def build_library(sources: Path, made: Path, target: str = TARGET) -> None:
    """Build the library from all C files of a folder."""
    zig("cc", "-target", target, *FLAGS, "-shared", "-Wl,-z,now", *sorted(sources.glob("*.c")), "-o", made)


def build_outer(made: Path) -> None:
    """Compile the outer module."""
    from edge_runtime.aot_cache import BEST
    from edge_runtime.wasmedge import compile_module

    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(compile_module(OUTER_WASM, Path(folder), BEST).path, made)


def main(root: Path) -> None:
    """Build both for the checkout or archive at `root`, and put them in place."""
    sources = root / library.FOLDER.relative_to(ROOT)
    built = root / library.BUILT.relative_to(ROOT)
    with tempfile.TemporaryDirectory(dir=built.parent, prefix=".making-") as made:
        folder = Path(made, "built")
        folder.mkdir()
        build_library(sources, folder / library.LIBRARY)
        build_outer(folder / library.OUTER)
        (folder / library.STAMP).write_text(json.dumps(library.stamp_of(folder, sources)))
        # Running processes have the old file mapped, so it is replaced and not overwritten.
        shutil.rmtree(built, ignore_errors=True)
        folder.rename(built)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT).resolve())
