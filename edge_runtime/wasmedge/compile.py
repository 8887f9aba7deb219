"""Ahead-of-time compilation into a private cache: `<key>.so` with its sha256 in `<key>.sha256` beside it.

A damaged AOT file crashes a process or computes wrongly, so these files are made here, readable by their owner alone,
and checked by digest before each load; they are never taken from elsewhere. The compiler uses much time and memory on
hostile input: run it in a child process with limits.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..files import sync_folder
from .declarations import VERSION, ffi, library
from .errors import CompileError
from .handles import Handle, message
from .imported import imported
from .module import MULTI_MEMORIES

QUICK = 0
"""The level that a function starts on: 45 ms for 28 KB of C (examples/hello)."""
BEST = 2
"""The level that it runs on once that is compiled: 0.6 s for the same. Level 3 ran no faster."""
LEVELS = (0, 1, 2, 3)

_OPTIONS = "native, kernel 1, memories imported"
"""Other text where other code comes of the same bytes: the number goes up with Extism's kernel and its merging."""
_TEMPORARY = ".compile-"
_PIECE = 65_536


class Damaged(Exception):
    """An AOT file isn't the one that was compiled: compile it again."""


@dataclass(frozen=True)
class AotFile:
    path: Path
    digest: str
    """sha256 of the file, in hex."""


def key(wasm_sha256: str, level: int) -> str:
    """The name of a compilation: of these bytes, by this WasmEdge, for this processor, at this level."""
    parts = "\n".join((wasm_sha256, VERSION, _processor(), f"{_OPTIONS} {level}"))
    return hashlib.sha256(parts.encode()).hexdigest()


def find(folder: Path, wasm_sha256: str, level: int) -> AotFile | None:
    """What was compiled earlier, undamaged; None where there is nothing, or nothing whole."""
    name = key(wasm_sha256, level)
    path = folder / f"{name}.so"
    try:
        digest = (folder / f"{name}.sha256").read_text("ascii").strip()
        verify(path, digest)
    except (OSError, UnicodeDecodeError, Damaged):
        return None
    return AotFile(path, digest)


def verify(path: Path, digest: str) -> None:
    """Check a file by its digest, as before each load. Errors: Damaged, OSError."""
    made = hashlib.sha256()
    # Not by hashlib.file_digest: its buffer of 256 KB, cleared first, costs a new worker a tenth of its birth.
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            made.update(piece)
    found = made.hexdigest()
    if found != digest:
        raise Damaged(f"{path} has the sha256 {found}, and must have {digest}")


def compile_module(wasm: bytes, folder: Path, level: int, *, merged: bytes | None = None) -> AotFile:
    """Compile to `folder` (which must exist, private to its owner) and return the file; durable when this returns.
    `merged`: what is compiled in the place of `wasm`, with a second memory.

    Errors: CompileError; LoadError; OSError where the files can't be written.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level} is not one of {LEVELS}")
    _sweep(folder)
    name = key(hashlib.sha256(wasm).hexdigest(), level)
    work = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=folder))
    try:
        made, beside = work / "module.so", work / "digest"
        code = imported(merged or wasm)
        with _Compiler(level, second_memory=merged is not None) as compiler:
            given = ffi.from_buffer("uint8_t[]", code)
            result = library.WasmEdge_CompilerCompileFromBuffer(compiler.pointer, given, len(code), bytes(made))
        if result:
            raise CompileError(result & 0xFFFFFF, f"WasmEdge can't compile the module: {message(result)}")
        made.chmod(0o600)
        with made.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{digest}\n")
            file.flush()
            os.fsync(file.fileno())
        # A kill between the two leaves a file that does not fit its digest, which `find` takes for none.
        path = folder / f"{name}.so"
        made.rename(path)
        beside.rename(folder / f"{name}.sha256")
        sync_folder(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return AotFile(path, digest)


def workshop(folder: Path) -> Path:
    """A new folder in the cache `folder`, for one compilation whose process isn't trusted with all of it."""
    _sweep(folder)
    return Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=folder))


def take(work: Path, folder: Path, wasm_sha256: str, level: int) -> None:
    """Move what was compiled in a workshop, and nothing else of it, to the cache; durable when this returns. Error:
    OSError."""
    name = key(wasm_sha256, level)
    for suffix in (".so", ".sha256"):
        made = work / f"{name}{suffix}"
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.rename(folder / made.name)
    sync_folder(folder)


class _CompilerConfig(Handle):
    _delete = "WasmEdge_ConfigureDelete"

    def __init__(self, level: int, second_memory: bool) -> None:
        self._own(library.WasmEdge_ConfigureCreate())
        if second_memory:
            library.WasmEdge_ConfigureAddProposal(self.pointer, MULTI_MEMORIES)
        library.WasmEdge_ConfigureCompilerSetOptimizationLevel(self.pointer, level)
        library.WasmEdge_ConfigureCompilerSetOutputFormat(self.pointer, self.NATIVE)

    NATIVE: ClassVar[int] = 0
    """WasmEdge_CompilerOutputFormat_Native: a shared object, whose pages all workers share."""


class _Compiler(Handle):
    _delete = "WasmEdge_CompilerDelete"

    def __init__(self, level: int, *, second_memory: bool) -> None:
        with _CompilerConfig(level, second_memory) as config:
            self._own(library.WasmEdge_CompilerCreate(config.pointer))


@functools.cache
def _processor() -> str:
    """The machine and the features that code is compiled for: a file moved to another processor is not found."""
    flags = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = " ".join(sorted(value.split()))
                break
    return f"{platform.machine()} {flags}"


def _sweep(folder: Path) -> None:
    """Remove what compilations left behind whose process was killed."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        pid = left.name.removeprefix(_TEMPORARY).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
