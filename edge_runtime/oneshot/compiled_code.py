"""The compiled code of a module for calls without a node: it is in a folder of AOT files, or fenced children make it,
which can write nothing else.

A snapshot's engine is compiled once for all snapshots of it, and always at the best level (docs/adr/0076).
"""

import hashlib
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from edge_runtime import aot_cache
from edge_runtime.aot_cache import BEST, QUICK, SNAPSHOT_BYTES, AotFile, ImageFile, SplitRecord
from edge_runtime.children.compile_child import DATA_BYTES
from edge_runtime.errors import CodedError
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.function_code import compile_artifact, split_artifact
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import PROCESSOR, RANDOM, READ, REBUILD
from edge_runtime.sandbox.landlock import Access
from edge_runtime.wasmedge import WasmEdgeError

LIMIT: Final = 3600.0
"""Seconds for one child. The process that started this one mostly has a shorter limit, and kills the child with it."""
SPLIT_LIMIT: Final = 60.0
"""Seconds for splitting a module."""

T = TypeVar("T")


class NotCompiled(ModuleRefused):
    """There is no compiled code; the message says why."""

    def __init__(self, code: str, message: str, number: int = 0) -> None:
        super().__init__(code, message)
        self.number = number
        """The signal that ended the compiler; 0 if none did."""


class _CompilerTold(Struct, omit_defaults=True):
    """What a child tells: why it failed, or what it split the module into."""

    code: str = ""
    message: str = ""
    split: SplitRecord | None = None


def _unchecked() -> None:
    """Do nothing."""


def ready(folder: Path, wasm: bytes, check: Callable[[], object]) -> AotFile:
    """Return a module's AOT file: a snapshot's is its engine's, any other's is at the quick level. `check` is called in
    the child that compiles, where it may raise CodedError.

    Raises: NotCompiled; OSError, when a file can't be written.
    """
    aot = aot_cache.find(folder, hashlib.sha256(wasm).hexdigest(), QUICK)
    if aot is not None:
        return aot
    image = image_of(folder, wasm)
    if image is None:
        return compiled(wasm, folder, QUICK, check)
    return engine(folder, wasm, image, check)


def image_of(folder: Path, wasm: bytes) -> ImageFile | None:
    """Return the image of a snapshot, and have its engine's module in the folder; None for any other module.

    Raises: as `ready`.
    """
    if len(wasm) < SNAPSHOT_BYTES:
        return None
    sha256 = hashlib.sha256(wasm).hexdigest()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    image = aot_cache.image_of(folder, sha256)
    if image is not None:
        files = ((image.path, image.digest), (aot_cache.engine_file(folder, image.engine), image.engine))
        if all(aot_cache.is_whole(*file) for file in files):
            return image

    def keep(work: Path, told: _CompilerTold) -> ImageFile | None:
        return None if told.split is None else aot_cache.keep_split(work, folder, sha256, told.split)

    return _in_child(folder, lambda work: _CompilerTold(split=split_artifact(wasm, work)), SPLIT_LIMIT, keep)


def engine(
    folder: Path, wasm: bytes, image: ImageFile, check: Callable[[], object] = _unchecked, limit: float = LIMIT
) -> AotFile:
    """Return the AOT file of a snapshot's engine, with the snapshot's image; it may take `limit` seconds.

    Raises: as `ready`.
    """
    module = aot_cache.engine_file(folder, image.engine).read_bytes()
    # The engine alone is compiled, but the snapshot is what must be fit to run.
    compiled(module, folder, BEST, check, limit)
    aot = aot_cache.find(folder, hashlib.sha256(wasm).hexdigest(), BEST)
    if aot is None:
        raise OSError("the compiler left no usable AOT file")
    return aot


def compiled(
    wasm: bytes, folder: Path, level: int, check: Callable[[], object] = _unchecked, limit: float = LIMIT
) -> AotFile:
    """Return the AOT file of a module as it is, at an optimization level.

    Raises: as `ready`.
    """
    sha256 = hashlib.sha256(wasm).hexdigest()
    aot = aot_cache.find(folder, sha256, level)
    if aot is not None:
        return aot
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def work_on(work: Path) -> _CompilerTold:
        check()
        compile_artifact(wasm, work, level)
        return _CompilerTold()

    def keep(work: Path, _told: _CompilerTold) -> None:
        aot_cache.install(work, folder, sha256, level)
        aot_cache.put_on_disk(folder, sha256, level)

    _in_child(folder, work_on, limit, keep)
    aot = aot_cache.find(folder, sha256, level)
    if aot is None:
        raise OSError("the compiler left no usable AOT file")
    return aot


def files_of(code: AotFile | Path) -> list[tuple[Path, Access]]:
    """Return the files that the process of a call reads: its code, and what random numbers come from."""
    read = [code] if isinstance(code, Path) else [code.path] if code.image is None else [code.path, code.image.path]
    return [*((path, READ) for path in read), RANDOM]


def trim(folder: Path, most: int) -> None:
    """Remove the files that were read or written least recently, until the others take at most `most` bytes on disk."""
    files = []
    for path in folder.iterdir():
        if path.is_file():
            info = path.stat()
            files.append((max(info.st_atime, info.st_mtime), info.st_blocks * 512, path))
    size = sum(taken for _, taken, _ in files)
    for _, taken, path in sorted(files):
        if size <= most:
            break
        path.unlink(missing_ok=True)
        size -= taken


def _in_child(
    folder: Path, work_on: Callable[[Path], _CompilerTold], limit: float, keep: Callable[[Path, _CompilerTold], T]
) -> T:
    """Have a fenced child work in a folder of its own, and keep what it made there; a child that was killed leaves
    nothing."""
    work = aot_cache.make_work_folder(folder)
    try:
        answer, status = run_forked(lambda: _fenced(work_on, work), limit)
        told = msgspec.json.decode(answer, type=_CompilerTold) if answer else None
        if told is not None and not told.code:
            return keep(work, told)
    except TimeoutError:
        raise NotCompiled("compile_timeout", f"It wasn't compiled after {limit:g} s.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if told is not None:
        raise NotCompiled(told.code, told.message)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        raise NotCompiled("compile_crashed", f"The compiler was ended by {signal.Signals(number).name}.", number)
    raise NotCompiled("compile_crashed", "The compiler ended without an answer; it says why above.")


def _fenced(work_on: Callable[[Path], _CompilerTold], work: Path) -> bytes:
    fence.lower_limit(resource.RLIMIT_DATA, DATA_BYTES)
    fence.enclose([(work, REBUILD), PROCESSOR])
    fence.seal("compiler")
    try:
        told = work_on(work)
    except CodedError as refused:
        told = _CompilerTold(refused.code, str(refused))
    except (WasmEdgeError, OSError) as error:
        told = _CompilerTold("function_unloadable", f"It can't be compiled: {error}.")
    return msgspec.json.encode(told)
