"""`python -m scripts.javascript_engine`: builds control/cli/project/javascript/engine.wasm anew (`just guests`).

The sources beside it are built by the `ziglang` wheel with those of QuickJS-ng and ada, which are in the source
packages that lock/engine.lock names by hash. The same sources give the same bytes. `engine.sha256` has the digest of
the module, and that of what is in the tree of its sources: a test compares both.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "control" / "cli" / "project" / "javascript"
LOCK = ROOT / "lock" / "engine.lock"
CACHE = ROOT / ".skerry" / "engine"
MODULES = (
    *("host", "timers", "events", "streams", "text", "url", "headers", "blob"),
    *("bodies", "fetch", "crypto", "console", "clone", "database", "main"),
)
"""The modules of runtime/, each behind those that it imports."""

_TARGET = ("-target", "wasm32-wasi", "-O2", "-flto")
_QUIET = ("-DNDEBUG", "-Wno-everything")
_EMULATED = ("-D_WASI_EMULATED_PROCESS_CLOCKS", "-D_WASI_EMULATED_SIGNAL")
_C = (*_TARGET, "-fno-sanitize=all", "-funsigned-char", "-fwrapv", "-D_GNU_SOURCE", *_EMULATED)
_CPP = (*_TARGET, "-fno-exceptions", "-fno-rtti", "-std=c++20")
_ZIG = ("-target", "wasm32-wasi", "-O", "ReleaseFast", "-fstrip")
_STRICT = ("-std=gnu23", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")
# The C stack is longer than what the engine lets JavaScript take: an error comes first, which a program can catch.
_LINKED = ("-s", "-mexec-model=reactor", "-nostartfiles", "-Wl,--no-entry", "-Wl,-z,stack-size=655360")


def sources() -> list[Path]:
    """The files of the tree that the engine is made of, in a fixed order."""
    modules = [HERE / "runtime" / f"{name}.js" for name in MODULES]
    return [HERE / "engine.c", HERE / "hash.zig", *modules, LOCK, Path(__file__)]


def digest_of_sources() -> str:
    found = hashlib.sha256()
    for path in sources():
        found.update(path.read_bytes() + b"\0")
    return found.hexdigest()


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        built = _built(Path(folder))
    (HERE / "engine.wasm").write_bytes(built)
    digests = {"engine.wasm": hashlib.sha256(built).hexdigest(), "sources": digest_of_sources()}
    (HERE / "engine.sha256").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), "utf-8")
    print(f"{(HERE / 'engine.wasm').relative_to(ROOT)}: {len(built)} bytes")
    return 0


def runtime_modules() -> bytes:
    """The modules of runtime/ as engine.c has them: name, NUL, text, NUL, and so on."""
    texts = ((name, (HERE / "runtime" / f"{name}.js").read_bytes()) for name in MODULES)
    return b"".join(f"runtime/{name}.js".encode() + b"\0" + text + b"\0" for name, text in texts)


def _built(folder: Path) -> bytes:
    quickjs, ada = _unpacked(folder)
    (folder / "runtime.modules").write_bytes(runtime_modules())
    # Relative paths: no name of a folder gets into the module.
    for name in ("engine.c", "hash.zig"):
        (folder / name).write_bytes((HERE / name).read_bytes())
    parts = ("quickjs", "libregexp", "libunicode", "dtoa")
    _zig(folder, ["build-obj", *_ZIG, "-femit-bin=hash.o", "hash.zig"])
    _zig(folder, ["c++", *_CPP, *_QUIET, "-c", "-o", "ada.o", f"{ada}/ada.cpp"])
    for part in parts:
        _zig(folder, ["cc", *_C, *_QUIET, f"-I{quickjs}", "-c", "-o", f"{part}.o", f"{quickjs}/{part}.c"])
    included = (f"-I{quickjs}", f"-I{ada}", "--embed-dir=.")
    _zig(folder, ["cc", *_C, "-DNDEBUG", *_STRICT, *included, "-c", "-o", "engine.o", "engine.c"])
    objects = [f"{part}.o" for part in ("engine", *parts, "ada", "hash")]
    _zig(folder, ["c++", *_TARGET, *_LINKED, "-o", "engine.wasm", *objects])
    return (folder / "engine.wasm").read_bytes()


def _unpacked(folder: Path) -> tuple[str, str]:
    """Return the folders of QuickJS's and ada's sources, below `folder`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    # pip looks into the cache first, and takes nothing whose hash is another.
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    options += ["--find-links", str(CACHE), "--dest", str(CACHE), "--requirement", str(LOCK)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)  # noqa: S603
    found = []
    for pattern, inner in (("quickjs_ng-*.tar.gz", "upstream-quickjs"), ("ada_url-*.tar.gz", "ada_url")):
        package = max(CACHE.glob(pattern), key=lambda path: path.stat().st_mtime)
        with tarfile.open(package) as opened:
            opened.extractall(folder, filter="data")
        found.append(f"{package.name.removesuffix('.tar.gz')}/{inner}")
    return found[0], found[1]


def _zig(folder: Path, command: Sequence[str]) -> None:
    program = [sys.executable, "-m", "ziglang", *command]
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig"), "ZIG_LOCAL_CACHE_DIR": str(CACHE / "zig-local")}
    ran = subprocess.run(program, cwd=folder, env=os.environ | cache, capture_output=True, text=True)  # noqa: S603
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ran.stderr}")


if __name__ == "__main__":
    sys.exit(main())
