"""Ahead-of-time (AOT) compilation of a module into the private cache of AOT files (`aot_cache`).

A damaged AOT file crashes the process that loads it, or computes wrongly. So AOT files are made here alone, readable by
their owner alone, and their digest is checked before each load. The compiler uses much time and memory on hostile
input: run it in a child process with limits.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

from edge_runtime.aot_cache import LEVELS, TEMPORARY, AotFile, key, sweep
from edge_runtime.wasmedge.declarations import ffi, library
from edge_runtime.wasmedge.errors import CompileError
from edge_runtime.wasmedge.handles import Handle, message
from edge_runtime.wasmedge.memory_imports import import_memories
from edge_runtime.wasmedge.module import MULTI_MEMORIES


def compile_module(wasm: bytes, folder: Path, level: int, *, merged: bytes | None = None) -> AotFile:
    """Compile `wasm` at an optimization level of `aot_cache.LEVELS`, and return the AOT file; `aot_cache.put_on_disk`
    is the caller's. `folder` must exist and be private to its owner. `merged` is an Extism plug-in with its kernel: it
    is compiled in place of `wasm`, and has a second memory.

    Raises: CompileError, when WasmEdge can't compile the module; LoadError, when `import_memories` can't read it;
    OSError, when a file can't be written.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level} is not one of {LEVELS}")
    sweep(folder)
    name = key(hashlib.sha256(wasm).hexdigest(), level)
    work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=folder))
    try:
        code_file, digest_file = work / "module.so", work / "digest"
        code = import_memories(merged or wasm)
        with _AotCompiler(level, second_memory=merged is not None) as compiler:
            buffer = ffi.from_buffer("uint8_t[]", code)
            result = library.WasmEdge_CompilerCompileFromBuffer(compiler.pointer, buffer, len(code), bytes(code_file))
        if result:
            raise CompileError(result & 0xFFFFFF, f"WasmEdge can't compile the module: {message(result)}")
        code_file.chmod(0o600)
        with code_file.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with os.fdopen(os.open(digest_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{digest}\n")
        # A kill between the two renames leaves a file without its digest, which `aot_cache.find` takes for no file.
        path = folder / f"{name}.so"
        code_file.rename(path)
        digest_file.rename(folder / f"{name}.sha256")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return AotFile(path, digest)


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


class _AotCompiler(Handle):
    _delete = "WasmEdge_CompilerDelete"

    def __init__(self, level: int, *, second_memory: bool) -> None:
        with _CompilerConfig(level, second_memory) as config:
            self._own(library.WasmEdge_CompilerCreate(config.pointer))
