"""The private cache of AOT files: `<key>.so` with its sha256 in `<key>.sha256` beside it.

WasmEdge isn't needed to find and check them: nothing here imports it, so that the front doesn't map its library.
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
from typing import Final

from edge_runtime.files import sync_folder

WASMEDGE: Final = "0.14.1"
"""The version that compiles the code, and runs it."""
QUICK = 0
"""The level that a function starts on: 45 ms for 28 KB of C (examples/hello)."""
BEST = 2
"""The level that it runs on once that is compiled: 0.6 s for the same. Level 3 ran no faster."""
LEVELS = (0, 1, 2, 3)

_OPTIONS = "native, kernel 1, memories imported"
"""Other text where other code comes of the same bytes: the number goes up with Extism's kernel and its merging."""
TEMPORARY = ".compile-"
"""What the names of folders begin with in which something is compiled; then comes the process id."""
_PIECE = 65_536
_COMPILED: Final = 0.5
"""Bytes of memory that a byte of an AOT file takes while it is loaded; afterwards a twentieth."""
_INTERPRETED: Final = 26
"""The same for a byte of an artifact on the interpreter, while it runs: 2 MB of code took 51 MB."""


class Damaged(Exception):
    """An AOT file isn't the one that was compiled: compile it again."""


@dataclass(frozen=True)
class AotFile:
    path: Path
    digest: str
    """sha256 of the file, in hex."""


def key(wasm_sha256: str, level: int) -> str:
    """The name of a compilation: of these bytes, by this WasmEdge, for this processor, at this level."""
    parts = "\n".join((wasm_sha256, WASMEDGE, _processor(), f"{_OPTIONS} {level}"))
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


def locate(folder: Path, wasm_sha256: str, level: int) -> AotFile | None:
    """As `find`, but the file isn't read: who loads it checks it."""
    name = key(wasm_sha256, level)
    path = folder / f"{name}.so"
    try:
        digest = (folder / f"{name}.sha256").read_text("ascii").strip()
        return AotFile(path, digest) if path.exists() else None
    except (OSError, UnicodeDecodeError):
        return None


def discard_damaged(folder: Path, wasm_sha256: str) -> bool:
    """Remove the AOT files of an artifact that aren't what was compiled; whether there were any."""
    removed = False
    for level in LEVELS:
        path = folder / f"{key(wasm_sha256, level)}.so"
        if path.exists() and find(folder, wasm_sha256, level) is None:
            removed = True
            path.unlink()
            path.with_suffix(".sha256").unlink(missing_ok=True)
    return removed


def memory_estimate(path: str | Path, *, compiled: bool) -> int:
    """Bytes of memory that loading a file of code and running it take, roughly; 0 where there is no such file."""
    with contextlib.suppress(OSError):
        return int(Path(path).stat().st_size * (_COMPILED if compiled else _INTERPRETED))
    return 0


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


def make_work_folder(folder: Path) -> Path:
    """A new folder in the cache `folder`, for one compilation whose process isn't trusted with all of it."""
    sweep(folder)
    return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=folder))


def install(work: Path, folder: Path, wasm_sha256: str, level: int) -> None:
    """Move what was compiled in a workshop, and nothing else of it, to the cache; durable when this returns. Error:
    OSError."""
    name = key(wasm_sha256, level)
    for suffix in (".so", ".sha256"):
        made = work / f"{name}{suffix}"
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.rename(folder / made.name)
    sync_folder(folder)


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


def sweep(folder: Path) -> None:
    """Remove what compilations left behind whose process was killed."""
    for left in folder.glob(f"{TEMPORARY}*"):
        pid = left.name.removeprefix(TEMPORARY).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
