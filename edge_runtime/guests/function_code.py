"""The code that runs for an artifact: an AOT file, or the module itself on the interpreter. Extism plug-ins get the
Extism kernel merged in first."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from edge_runtime.aot_cache import ENGINE, IMAGE, SplitRecord
from edge_runtime.guests.abi import binary, extism
from edge_runtime.guests.abi.merge import merge
from edge_runtime.wasmedge import AotFile, Config, LoadError, Module, compile_module, verify
from edge_runtime.wasmedge.memory_imports import import_memories
from edge_runtime.wasmedge.split import split

IMAGE_PAGES: Final = 4096
"""Pages of the largest image: its digest is checked before each load, which takes 0.2 s for as many."""
SEGMENTS: Final = 20_000
"""The most data segments that an image is made of: each may cost a block of the disk. Wizer leaves 10,000 at most."""
INITIALISERS: Final = frozenset(("_start", "_initialize"))
"""What a program or a library exports that isn't initialised."""
_PAGES = 65536


def compile_artifact(wasm: bytes, folder: Path, level: int, made: Callable[[AotFile], None] | None = None) -> AotFile:
    """Compile an artifact of any ABI, as `compile_module` does.

    Raises: LoadError, when the module is invalid; CompileError, when WasmEdge can't compile it; OSError, when a file
    can't be written.
    """
    merged = _merged(wasm) if extism.is_plugin(_shape(wasm)) else None
    return compile_module(wasm, folder, level, merged=merged, made=made)


def _shape(wasm: bytes) -> binary.Shape:
    """Raises: LoadError, when it is no module."""
    try:
        return binary.read(wasm)
    except binary.Malformed as error:
        raise LoadError(0, f"it is no valid module: {error}") from None


def split_artifact(wasm: bytes, folder: Path) -> SplitRecord | None:
    """Write a snapshot's image and its engine into `folder`, as `aot_cache.keep_split` takes them. Return None for an
    artifact that stays whole. WasmEdge sees nothing of it, so that no artifact can pass for one of another engine.

    A module that something must still initialise is no snapshot, however much data it has: a program in Go has a
    megabyte. It would wait for its best code, which it shares with no other.

    Raises: LoadError, when the module is invalid; OSError, when a file can't be written.
    """
    made = split(wasm)
    if made is None or made.pages > IMAGE_PAGES or len(made.segments) > SEGMENTS:
        return None
    shape = _shape(wasm)
    if extism.is_plugin(shape) or shape.exports.keys() & INITIALISERS:
        return None
    image = folder / IMAGE
    with image.open("xb") as file:
        made.write_image(file)
    image.chmod(0o400)
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    (folder / ENGINE).write_bytes(made.code)
    (folder / ENGINE).chmod(0o400)
    return SplitRecord(made.sha256, digest, made.pages)


_engines: Final[WeakValueDictionary[tuple[str, str, int], Module]] = WeakValueDictionary()
"""The engines that this process has loaded: each once for all its snapshots. By path and sha256 of the AOT file, and by
its inode: one that was damaged on disk is loaded anew from the file in its place."""


def load_engine(path: Path, digest: str, config: Config) -> Module:
    """Return the engine of a snapshot from its AOT file, which is loaded once for all functions that have it.

    Raises: Damaged, when the file isn't what was compiled; LoadError, when WasmEdge refuses it; OSError, when it can't
    be read.
    """
    name = str(path), digest, path.stat().st_ino
    engine = _engines.get(name)
    if engine is None:
        verify(path, digest)
        engine = _engines[name] = Module.from_file(path, config)
        engine.shared = True
    return engine


def has_engine(path: str, digest: str) -> bool:
    """Return whether the engine is loaded."""
    with contextlib.suppress(OSError):
        return (path, digest, os.stat(path).st_ino) in _engines
    return False


def load(path: Path, config: Config, abi: str, *, compiled: bool) -> Module:
    """Load an AOT file or an artifact. The caller has checked the file's digest.

    Raises: LoadError, when WasmEdge refuses the file; OSError, when it can't be read.
    """
    if abi == extism.ABI and not compiled:
        return Module.from_bytes(interpreted(path.read_bytes(), abi), config)
    return Module.from_file(path, config)


def interpreted(wasm: bytes, abi: str) -> bytes:
    """Return the module that the interpreter runs for an artifact.

    Raises: LoadError, when WasmEdge refuses it.
    """
    return import_memories(_merged(wasm) if abi == extism.ABI else wasm)


def check(wasm: bytes, abi: str, memory_pages: int) -> None:
    """Load a module as it was uploaded, and as it will run.

    Raises: LoadError, when WasmEdge refuses either.
    """
    plugin = abi == extism.ABI
    whole = _merged(wasm) if plugin else _valid(wasm)
    with Config(memory_pages=memory_pages, second_memory=plugin) as config:
        Module.from_bytes(import_memories(whole), config).close()


def _valid(wasm: bytes) -> bytes:
    with Config(memory_pages=_PAGES) as config:
        Module.from_bytes(wasm, config).close()
    return wasm


def _merged(wasm: bytes) -> bytes:
    # The plug-in is validated before the merge, which reads only the parts that it changes; and after the merge, since
    # with a second memory more modules are valid.
    try:
        return merge(_valid(wasm))
    except binary.Malformed as error:
        raise LoadError(0, f"the Extism kernel can't be put in: {error}") from None
