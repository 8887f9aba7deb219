"""Ahead-of-time compilation into a private cache (`aot_cache`).

A damaged AOT file crashes a process or computes wrongly, so these files are made here, readable by their owner alone,
and checked by digest before each load; they are never taken from elsewhere. The compiler uses much time and memory on
hostile input: run it in a child process with limits.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

from edge_runtime.aot_cache import LEVELS, TEMPORARY, AotFile, key, sweep
from edge_runtime.files import sync_folder
from edge_runtime.wasmedge.declarations import ffi, library
from edge_runtime.wasmedge.errors import CompileError
from edge_runtime.wasmedge.handles import Handle, message
from edge_runtime.wasmedge.memory_imports import import_memories
from edge_runtime.wasmedge.module import MULTI_MEMORIES


def compile_module(wasm: bytes, folder: Path, level: int, *, merged: bytes | None = None) -> AotFile:
    """Compile to `folder` (which must exist, private to its owner) and return the file; durable when this returns.
    `merged`: what is compiled in the place of `wasm`, with a second memory.

    Errors: CompileError; LoadError; OSError where the files can't be written.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level} is not one of {LEVELS}")
    sweep(folder)
    name = key(hashlib.sha256(wasm).hexdigest(), level)
    work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=folder))
    try:
        made, beside = work / "module.so", work / "digest"
        code = import_memories(merged or wasm)
        with _AotCompiler(level, second_memory=merged is not None) as compiler:
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
