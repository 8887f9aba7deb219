"""Builds guests from their sources, each once for its contents: C and Zig by the `ziglang` wheel, text by wasmtime's.

`guest("echo")` is the bytes of tests/guests/echo.c or echo.wat, `example("hello")` those of examples/hello. `native` is
for what tests and benchmarks have in C beside guests: it runs on this machine itself.
Run as a program (`just guests`), builds all examples into their folders, and the Extism kernel.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from wasmtime import wat2wasm

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "guests"
EXAMPLES = ROOT / "examples"
KERNEL = ROOT / "edge_runtime" / "guests" / "abi" / "kernel.wat"
HEADERS = EXAMPLES / "c"
CACHE = ROOT / ".skerry" / "guests"

_LAYOUT = ["-Wl,-z,stack-size=65536"]
_COMMANDS = {
    ".c": ["cc", "-target", "wasm32-wasi", "-O2", "-s", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}", *_LAYOUT],
    ".zig": ["build-exe", "-target", "wasm32-wasi", "-O", "ReleaseSmall", "-fstrip", "-lc", "--stack", "65536"],
}

_DIRECT = ["-Wl,-z,stack-size=63488"]
"""The stack ends, and the data begins, in the same page of the processor's: a small call touches no other."""


def guest(name: str) -> bytes:
    """A test guest: loop, trap, echo … (the files beside this one)."""
    return build(_source(HERE, name))


def example(name: str) -> bytes:
    """An example, built from its source."""
    return build(_source(EXAMPLES / name, name))


def wat(text: str) -> bytes:
    """A module from its text format."""
    return bytes(wat2wasm(text))


def build(source: Path) -> bytes:
    """The module of a source file, from the cache where it was built before. Processes may build at the same time."""
    text = source.read_bytes()
    if source.suffix == ".wat":
        return wat(text.decode())
    command = _COMMANDS[source.suffix] + (_DIRECT if b'"skerry_direct.h"' in text else [])
    if b'"extism_host.h"' in text:
        command = [*command, "-mexec-model=reactor"]
    return _made(source, command, ".wasm", sorted([*HEADERS.glob("*.h"), *HERE.glob("*.h")])).read_bytes()


def native(source: Path, *flags: str) -> Path:
    """The file that Zig's C compiler makes of a source for this machine, from the cache as those of `build`."""
    return _made(source, ["cc", *flags])


def _made(source: Path, command: list[str], suffix: str = "", headers: Sequence[Path] = ()) -> Path:
    """The file that the command makes of a source: a new one for other contents, headers, arguments or compilers."""
    recipe = [*[path.read_bytes() for path in (source, *headers)], " ".join(command).encode()]
    recipe.append(importlib.metadata.version("ziglang").encode())
    digest = hashlib.sha256(b"\0".join(recipe)).hexdigest()
    built = CACHE / f"{digest}{suffix}"
    if not built.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / f"made{suffix}"
            _zig([*command, str(source)], made)
            made.rename(built)
    return built


def _zig(command: list[str], made: Path) -> None:
    output = [f"-femit-bin={made}"] if command[0] == "build-exe" else ["-o", str(made)]
    # Its cache (the C library, built once) stays in the repository's own.
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig"), "ZIG_LOCAL_CACHE_DIR": str(CACHE / "zig-local")}
    ran = subprocess.run(
        [sys.executable, "-m", "ziglang", *command, *output],
        env={**os.environ, **cache},
        cwd=made.parent,
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ran.stderr}")


def _source(folder: Path, name: str) -> Path:
    for suffix in (".c", ".zig", ".wat"):
        source = folder / f"{name}{suffix}"
        if source.exists():
            return source
    raise FileNotFoundError(f"{folder} has no source of a guest {name}")


if __name__ == "__main__":
    made = {EXAMPLES / name / f"{name}.wasm": example(name) for name in ("hello", "visits")}
    for target, built in {**made, KERNEL.with_suffix(".wasm"): build(KERNEL)}.items():
        target.write_bytes(built)
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes")
