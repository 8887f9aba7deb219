"""Ahead-of-time (AOT) compilation of a module into the private cache of AOT files (`aot_cache`).

A damaged AOT file crashes the process that loads it, or computes wrong results. So AOT files are made only here,
readable only by their owner, and their digest is checked before each load. The compiler uses much time and memory on
hostile input: run it in a child process with limits.
"""

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from edge_runtime.aot_cache import LEVELS, TEMPORARY, AotFile, key, sweep
from edge_runtime.wasmedge.c_api import Handle, ffi, library, message
from edge_runtime.wasmedge.errors import CompileError
from edge_runtime.wasmedge.memory_imports import import_memories
from edge_runtime.wasmedge.module import MULTI_MEMORIES

_LOOK: Final = 0.0002
"""The least number of seconds between two checks whether code is linked; later checks wait a hundredth of the time
elapsed."""


def compile_module(
    wasm: bytes,
    folder: Path,
    level: int,
    *,
    merged: bytes | None = None,
    made: Callable[[AotFile], None] | None = None,
) -> AotFile:
    """Compile `wasm` at an optimization level of `aot_cache.LEVELS`, and return the AOT file; the caller must call
    `aot_cache.put_on_disk`. `folder` must exist and be private to its owner. `merged` is an Extism plug-in with its
    kernel: it is compiled in place of `wasm`, and has a second memory. `made` is called once with the AOT file, as soon
    as it exists: mostly in another thread, while WasmEdge frees its memory.

    Raises: CompileError, when WasmEdge can't compile the module; LoadError, when `import_memories` can't read it;
    OSError, when a file can't be written.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level} is not one of {LEVELS}")
    sweep(folder)
    name = key(hashlib.sha256(wasm).hexdigest(), level)
    work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-", dir=folder))
    code_file = work / "module.so"

    def take() -> AotFile:
        aot = _take(code_file, folder / f"{name}.so")
        if made is not None:
            made(aot)
        return aot

    try:
        code = import_memories(merged or wasm)
        with _AotCompiler(level, second_memory=merged is not None) as compiler, _LinkWatch(code_file, take) as watch:
            buffer = ffi.from_buffer("uint8_t[]", code)
            result = library.WasmEdge_CompilerCompileFromBuffer(compiler.pointer, buffer, len(code), bytes(code_file))
        if result:
            raise CompileError(result & 0xFFFFFF, f"WasmEdge can't compile the module: {message(result)}")
        return watch.taken()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def is_linked(code_file: Path) -> bool:
    """Return whether WasmEdge has linked this file, so that all of it is there.

    lld gives the whole file its name by a rename, but writes to that name if the file system can't map files
    (`FileOutputBuffer` in LLVM). So the check is whether WasmEdge has removed the object file beside it: it creates
    that before it links, and removes it once lld has reported success (`outputNativeLibrary` in lib/llvm/codegen.cpp).
    """
    return code_file.exists() and not any(name.endswith(".o") for name in os.listdir(code_file.parent))


def _take(code_file: Path, path: Path) -> AotFile:
    """Move linked code to `path`, its digest beside it. Raises: OSError."""
    code_file.chmod(0o600)
    with code_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    digest_file = code_file.with_name("digest")
    with os.fdopen(os.open(digest_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{digest}\n")
    # A kill between the two renames leaves a file without its digest, which `aot_cache.find` ignores.
    code_file.rename(path)
    digest_file.rename(path.with_suffix(".sha256"))
    return AotFile(path, digest)


class _LinkWatch:
    """A thread that takes code as soon as it is linked: WasmEdge spends another 2 ms freeing LLVM's memory before it
    returns."""

    def __init__(self, code_file: Path, take: Callable[[], AotFile]) -> None:
        self._code_file: Final = code_file
        self._take: Final = take
        self._aot: AotFile | None = None
        self._error: Exception | None = None
        self._returned: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="skerry-link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._returned.set()
        self._thread.join()

    def taken(self) -> AotFile:
        """Return the AOT file of code that was compiled. Raises: OSError, or whatever `take` has raised."""
        if self._error is not None:
            raise self._error
        return self._aot or self._take()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            while not is_linked(self._code_file):
                # Not by inotify, which would also report files that the compiler's fence hides from it.
                if self._returned.wait(max(_LOOK, (time.monotonic() - began) / 100)):
                    return
            self._aot = self._take()
        except Exception as error:
            self._error = error


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
