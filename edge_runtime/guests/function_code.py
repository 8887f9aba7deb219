"""The code that runs for an artifact: an AOT file, or the module itself on the interpreter. Extism plug-ins get the
Extism kernel merged in first."""

from collections.abc import Callable
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from edge_runtime.guests.abi import binary, extism
from edge_runtime.guests.abi.merge import merge
from edge_runtime.wasmedge import AotFile, Config, LoadError, Module, compile_module, verify
from edge_runtime.wasmedge.memory_imports import import_memories

_PAGES = 65536


def compile_artifact(wasm: bytes, folder: Path, level: int, made: Callable[[AotFile], None] | None = None) -> AotFile:
    """Compile an artifact of any ABI, as `compile_module` does.

    Raises: LoadError, when the module is invalid; CompileError, when WasmEdge can't compile it; OSError, when a file
    can't be written.
    """
    try:
        plugin = extism.is_plugin(binary.read(wasm))
    except binary.Malformed as error:
        raise LoadError(0, f"it is no valid module: {error}") from None
    return compile_module(wasm, folder, level, merged=_merged(wasm) if plugin else None, made=made)


_engines: Final[WeakValueDictionary[tuple[str, str], Module]] = WeakValueDictionary()
"""The engines that this process has loaded, by path and sha256 of the AOT file: each once for all its snapshots."""


def load_engine(path: Path, digest: str, config: Config) -> Module:
    """Return the engine of a snapshot from its AOT file, which is loaded once for all functions that have it.

    Raises: Damaged, when the file isn't what was compiled; LoadError, when WasmEdge refuses it; OSError, when it can't
    be read.
    """
    engine = _engines.get((str(path), digest))
    if engine is None:
        verify(path, digest)
        engine = _engines[str(path), digest] = Module.from_file(path, config)
        engine.shared = True
    return engine


def has_engine(path: str, digest: str) -> bool:
    """Return whether the engine is loaded."""
    return (path, digest) in _engines


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
