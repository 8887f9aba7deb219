"""The private cache of AOT files: `<key>.so`, with its sha256 in `<key>.sha256` beside it.

Nothing here imports WasmEdge, so that the front, which finds and checks AOT files, doesn't map its library.
"""

import contextlib
import errno
import functools
import hashlib
import io
import os
import platform
import secrets
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_runtime.files import sync_folder

WASMEDGE: Final = "0.14.1"
"""The version of WasmEdge that compiles the code and runs it."""
QUICK = 0
"""The optimization level at which a function starts: 45 ms for 28 KB of C (examples/hello)."""
BEST = 2
"""The final optimization level of a function: 0.6 s for the same code. Level 3 ran no faster."""
LEVELS = (0, 1, 2, 3)

_OPTIONS = "native, kernel 2, memories imported"
"""A part of the key, which changes whenever the same module would compile to different code. The kernel's number is
increased with each change of Extism's kernel or of its merging."""
FOLDER: Final = "aot"
"""The cache's name in a state directory."""
TEMPORARY = ".compile-"
"""Prefix of the folders in which code is compiled; the process id follows."""
_PIECE = 65_536
_COMPILED: Final = 0.5
"""Bytes of memory for each byte of an AOT file while it is loaded; a twentieth remains in use afterwards."""
_INTERPRETED: Final = 26
"""Bytes of memory for each byte of an artifact that runs on the interpreter: 2 MB of code took 51 MB."""


class Damaged(Exception):
    """An AOT file differs from what was compiled: compile the module again."""


@dataclass(frozen=True)
class AotFile:
    path: Path
    digest: str
    """The file's sha256, in hex."""


def users_folder() -> Path:
    """Return the user's folder of AOT files, for calls without a node, even for a user without a home."""
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/")
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "skerry" / "aot"


def key(wasm_sha256: str, level: int) -> str:
    """Return the name of a compilation: of this module, by this WasmEdge, for this processor, at this level."""
    parts = "\n".join((wasm_sha256, WASMEDGE, _processor(), f"{_OPTIONS} {level}"))
    return hashlib.sha256(parts.encode()).hexdigest()


def find(folder: Path, wasm_sha256: str, level: int) -> AotFile | None:
    """Return the AOT file that was compiled earlier; None if there is none, or it is damaged."""
    name = key(wasm_sha256, level)
    path = folder / f"{name}.so"
    try:
        digest = (folder / f"{name}.sha256").read_text("ascii").strip()
        verify(path, digest)
    except (OSError, UnicodeDecodeError, Damaged):
        return None
    return AotFile(path, digest)


def locate(folder: Path, wasm_sha256: str, level: int) -> AotFile | None:
    """Do as `find` does, without checking the file's digest: loading checks it."""
    name = key(wasm_sha256, level)
    path = folder / f"{name}.so"
    try:
        digest = (folder / f"{name}.sha256").read_text("ascii").strip()
        return AotFile(path, digest) if path.exists() else None
    except (OSError, UnicodeDecodeError):
        return None


def discard_damaged(folder: Path, wasm_sha256: str) -> bool:
    """Remove the damaged AOT files of an artifact, and return whether there were any."""
    removed = False
    for level in LEVELS:
        path = folder / f"{key(wasm_sha256, level)}.so"
        if path.exists() and find(folder, wasm_sha256, level) is None:
            removed = True
            path.unlink()
            path.with_suffix(".sha256").unlink(missing_ok=True)
    return removed


def remove_others(folder: Path, kept: Iterable[str]) -> None:
    """Remove the AOT files of all artifacts except `kept` (sha256), at the two levels of a node's functions."""
    names = {key(sha256, level) for sha256 in kept for level in (QUICK, BEST)}
    for path in folder.iterdir():
        if path.suffix in (".so", ".sha256") and path.stem not in names:
            path.unlink(missing_ok=True)


def memory_estimate(path: str | Path, *, compiled: bool) -> int:
    """Return roughly the bytes of memory that loading and running a code file takes; 0 if it doesn't exist."""
    with contextlib.suppress(OSError):
        return int(Path(path).stat().st_size * (_COMPILED if compiled else _INTERPRETED))
    return 0


def verify(path: Path, digest: str) -> None:
    """Check a file's sha256, which is done before each load.

    Raises: Damaged, when the file has another digest; OSError, when it can't be read.
    """
    with path.open("rb", buffering=0) as file:
        verify_open(file, path, digest)


def verify_open(file: io.FileIO, path: Path, digest: str) -> None:
    """Check the sha256 of a file that is open at its start, as `verify` does; `path` is its name in errors. Raises: as
    `verify`."""
    sha256 = hashlib.sha256()
    # Not hashlib.file_digest: clearing its 256 KB buffer takes a tenth of a new worker's start.
    while piece := file.read(_PIECE):
        sha256.update(piece)
    actual = sha256.hexdigest()
    if actual != digest:
        raise Damaged(f"{path} has the sha256 {actual}, and must have {digest}")


def work_folder(folder: Path) -> Path:
    """Return the path of a folder that `make_work_folder` could make."""
    return folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"


def make_work_folder(folder: Path) -> Path:
    """Make a folder in the cache for one compilation, whose process must write nowhere else in the cache."""
    sweep(folder)
    work = work_folder(folder)
    work.mkdir(0o700)
    return work


def install(work: Path, folder: Path, wasm_sha256: str, level: int) -> None:
    """Move the AOT file and its digest, and nothing else, from `work` to the cache; `put_on_disk` comes next.

    Raises: OSError, when a file is missing, isn't a regular file, or can't be moved.
    """
    name = key(wasm_sha256, level)
    made = [work / f"{name}{suffix}" for suffix in (".so", ".sha256")]
    for path in made:
        # A compromised compiler may have made a folder, which nobody could replace.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "what the compiler made is no file", str(path))
    for path in made:
        path.rename(folder / path.name)


def put_on_disk(folder: Path, wasm_sha256: str, level: int) -> None:
    """Make an AOT file and its digest survive a power loss.

    If the power fails before that, the digest shows the damage, and the file is compiled again.

    Raises: OSError; then `remove` it once nobody uses it.
    """
    for suffix in (".so", ".sha256"):
        with (folder / f"{key(wasm_sha256, level)}{suffix}").open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def remove(folder: Path, wasm_sha256: str, level: int) -> None:
    """Remove an AOT file and its digest, if they exist."""
    for suffix in (".so", ".sha256"):
        (folder / f"{key(wasm_sha256, level)}{suffix}").unlink(missing_ok=True)


@functools.cache
def _processor() -> str:
    """Return the machine and the features that code is compiled for: another processor must not use this cache."""
    flags = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = " ".join(sorted(value.split()))
                break
    return f"{platform.machine()} {flags}"


def sweep(folder: Path) -> None:
    """Remove the folders of compilations whose process has exited."""
    for work_folder in folder.glob(f"{TEMPORARY}*"):
        pid = work_folder.name.removeprefix(TEMPORARY).split("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(work_folder, ignore_errors=True)
