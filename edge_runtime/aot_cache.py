"""The private cache of AOT files: `<key>.so`, with its sha256 in `<key>.sha256` beside it.

A snapshot's artifact (docs/architecture.md) has no AOT file of its own: its memory is `<key>.image`, and `<key>.split`
names the engine, whose AOT file it runs; `<sha256>.engine` is the engine itself, as a module.

Nothing here imports WasmEdge, so that the front, which finds and checks AOT files, doesn't map its library.
"""

import contextlib
import errno
import functools
import hashlib
import io
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from edge_runtime.files import sync_folder, write

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
SNAPSHOT_BYTES: Final = 256 * 1024
"""Bytes of the smallest artifact that may be a snapshot: as much memory it has at least."""
IMAGE: Final = "image"
ENGINE: Final = "engine"
"""Names of the files that the compiler makes of a snapshot in its work folder."""
ENGINE_SUFFIX: Final = ".engine"
"""The end of the names of engines' modules in the cache."""
_SPLIT: Final = "split 1"
"""A part of the names of what a snapshot is split into; its number is increased with each change of the split."""
_RECORD: Final = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{64}) ([0-9]{1,5})\n")
_PAGE: Final = 65_536
_PIECE = 65_536
_COMPILED: Final = 0.5
"""Bytes of memory for each byte of an AOT file while it is loaded; a twentieth remains in use afterwards."""
_INTERPRETED: Final = 26
"""Bytes of memory for each byte of an artifact that runs on the interpreter: 2 MB of code took 51 MB."""


class Damaged(Exception):
    """An AOT file differs from what was compiled: compile the module again."""


@dataclass(frozen=True)
class ImageFile:
    """The memory of a snapshot's artifact, and its engine."""

    engine: str
    """sha256 of the engine's module, in hex."""
    path: Path
    digest: str
    """The file's sha256, in hex."""
    pages: int
    """Its size, in pages of 64 KiB."""


@dataclass(frozen=True)
class AotFile:
    path: Path
    digest: str
    """The file's sha256, in hex."""
    image: ImageFile | None = None
    """The memory that it begins with, if it is a snapshot's engine."""


class SplitRecord(NamedTuple):
    """What a snapshot's artifact was split into."""

    engine: str
    """sha256 of the engine's module, in hex."""
    digest: str
    """sha256 of the image, in hex."""
    pages: int
    """Pages of 64 KiB that the image has."""


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
    aot = locate(folder, wasm_sha256, level)
    try:
        if aot is not None:
            verify(aot.path, aot.digest)
        if aot is not None and aot.image is not None:
            verify(aot.image.path, aot.image.digest)
    except (OSError, Damaged):
        return None
    return aot


def locate(folder: Path, wasm_sha256: str, level: int) -> AotFile | None:
    """Do as `find` does, without checking the file's digest: loading checks it. A snapshot has its engine's AOT file,
    which is always at the best level."""
    image = image_of(folder, wasm_sha256)
    name = key(wasm_sha256, level) if image is None else key(image.engine, BEST)
    path = folder / f"{name}.so"
    try:
        digest = (folder / f"{name}.sha256").read_text("ascii").strip()
        return AotFile(path, digest, image) if path.exists() else None
    except (OSError, UnicodeDecodeError):
        return None


def image_of(folder: Path, wasm_sha256: str) -> ImageFile | None:
    """Return the image of an artifact that was split earlier, without checking its digest; None if it isn't there as a
    whole."""
    record = _record(folder, wasm_sha256)
    if record is None:
        return None
    path = folder / f"{_split_name(wasm_sha256)}.image"
    with contextlib.suppress(OSError):
        if path.stat().st_size == record.pages * _PAGE:
            return ImageFile(record.engine, path, record.digest, record.pages)
    return None


def engine_file(folder: Path, engine: str) -> Path:
    """Return the path of an engine's module (`engine` is its sha256)."""
    return folder / f"{engine}{ENGINE_SUFFIX}"


def keep_split(work: Path, folder: Path, wasm_sha256: str, made: SplitRecord) -> ImageFile:
    """Move what an artifact was split into from `work` to the cache, where it survives a power loss.

    Raises: OSError, when a file is missing, isn't a regular file, or can't be moved or written.
    """
    name = _split_name(wasm_sha256)
    image = folder / f"{name}.image"
    moves = ((work / IMAGE, image), (work / ENGINE, engine_file(folder, made.engine)))
    for path, _ in moves:
        _must_be_file(path)
    # The record comes first: `remove_others` keeps the engines that are named by one.
    write(folder / f"{name}.split", f"{made.engine} {made.digest} {made.pages}\n".encode())
    for path, target in moves:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.rename(target)
    sync_folder(folder)
    return ImageFile(made.engine, image, made.digest, made.pages)


def copy_engines(source: Path, target: Path) -> None:
    """Copy the compiled engines that `target` lacks, unless they are damaged. Raises: OSError."""
    for path in source.glob(f"*{ENGINE_SUFFIX}"):
        name = key(path.stem, BEST)
        if (target / path.name).exists() and locate(target, path.stem, BEST) is not None:
            continue
        if find(source, path.stem, BEST) is not None:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What the file's digest doesn't fit isn't loaded, whatever comes in between.
            for file in (f"{name}.sha256", f"{name}.so", path.name):
                write(target / file, (source / file).read_bytes())


def forget_split(folder: Path, wasm_sha256: str) -> None:
    """Remove an artifact's image and its record, if they exist."""
    for suffix in (".split", ".image"):
        (folder / f"{_split_name(wasm_sha256)}{suffix}").unlink(missing_ok=True)


def _record(folder: Path, wasm_sha256: str) -> SplitRecord | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = _RECORD.fullmatch((folder / f"{_split_name(wasm_sha256)}.split").read_text("ascii"))
        return None if found is None else SplitRecord(found[1], found[2], int(found[3]))
    return None


def _split_name(wasm_sha256: str) -> str:
    return hashlib.sha256(f"{wasm_sha256}\n{_SPLIT}".encode()).hexdigest()


def discard_damaged(folder: Path, wasm_sha256: str) -> bool:
    """Remove the damaged AOT files of an artifact, its damaged image, and its engine's damaged files. Return whether
    there were any."""
    removed = False
    image = image_of(folder, wasm_sha256)
    names = [key(wasm_sha256, level) for level in LEVELS] + ([key(image.engine, BEST)] if image is not None else [])
    for name in names:
        path = folder / f"{name}.so"
        if path.exists() and not is_whole(path, _beside(path)):
            removed = True
            path.unlink()
            path.with_suffix(".sha256").unlink(missing_ok=True)
    if image is not None:
        if not is_whole(image.path, image.digest):
            removed = True
            forget_split(folder, wasm_sha256)
        module = engine_file(folder, image.engine)
        if module.exists() and not is_whole(module, image.engine):
            removed = True
            module.unlink()
    return removed


def is_whole(path: Path, digest: str) -> bool:
    """Return whether a file is there with this sha256."""
    try:
        verify(path, digest)
    except (OSError, Damaged):
        return False
    return True


def _beside(path: Path) -> str:
    """Return the sha256 that a file must have; empty if it isn't known."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.with_suffix(".sha256").read_text("ascii").strip()
    return ""


def remove_others(folder: Path, kept: Iterable[str]) -> None:
    """Remove the files of all artifacts except `kept` (sha256): AOT files at the two levels of a node's functions,
    images, and the engines that none of `kept` has."""
    kept = set(kept)
    engines = {record.engine for sha256 in kept if (record := _record(folder, sha256)) is not None}
    names = {key(sha256, level) for sha256 in kept | engines for level in (QUICK, BEST)}
    names |= {_split_name(sha256) for sha256 in kept} | engines
    for path in folder.iterdir():
        if path.suffix in (".so", ".sha256", ".split", ".image", ENGINE_SUFFIX) and path.stem not in names:
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
        _must_be_file(path)
    for path in made:
        path.rename(folder / path.name)


def _must_be_file(path: Path) -> None:
    """Raises: OSError, when it is missing or no regular file: a compromised compiler may have made a folder, which
    nobody could replace."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "what the compiler made is no file", str(path))


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
