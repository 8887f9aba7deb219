"""What LLVM makes of a module, kept for all tests of a run: nodes compile the same few modules hundreds of times, each
for 50 ms of a processor and more.

Only LLVM's work is left out: the compiler has its process, fence, folder and limits, and takes the code as ever. A test
of compilation itself, of its time or memory, has the fixture `real_compilation`.

The code is in one file, which a process opens before its fence keeps it from other files. Each piece is one write at
the file's end, so that many processes can add some at the same time.
"""

import functools
import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from edge_runtime.aot_cache import WASMEDGE, AotFile
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import PROCESSOR, ProcessKind
from edge_runtime.sandbox.landlock import Access
from edge_runtime.wasmedge import aot_compile
from edge_runtime.wasmedge.c_api import ffi, library
from tests.support import forked_programs

_HEAD: Final = struct.Struct("=32s32sQ")
"""Before each piece: what it was made of, its sha256, its length."""


def use(file: Path) -> None:
    """Have this process, and those that it forks, take code from this file and add what is made to it."""
    kept = _KeptCode(file)
    fence.enter = functools.partial(_enter, kept, fence.enter)
    fence.enclose = functools.partial(_enclose, kept, fence.enclose)
    aot_compile.library = _Library(kept)
    aot_compile._AotCompiler = functools.partial(_compiler, kept, aot_compile._AotCompiler)
    aot_compile._take = functools.partial(_take, kept, aot_compile._take)


class _KeptCode:
    def __init__(self, file: Path) -> None:
        self.options: tuple[int, bool] = 0, False
        """Level, and whether there is a second memory, of what is compiled now."""
        self.made_of = b""
        """The key of what LLVM compiles now; empty where that is kept already."""
        self._file = file
        self._descriptor = -1

    def open(self) -> None:
        """Open the file, if this process hasn't."""
        if self._descriptor == -1:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def key(self, wasm: bytes) -> bytes:
        return hashlib.sha256(b"%r %r " % (WASMEDGE, self.options) + wasm).digest()

    def find(self, key: bytes) -> bytes | None:
        """The code that was made of this, where it is kept."""
        for found, digest, at, length in self._pieces():
            if found == key:
                code = os.pread(self._descriptor, length, at)
                return code if hashlib.sha256(code).digest() == digest else None
        return None

    def add(self, key: bytes, code: bytes) -> None:
        os.write(self._descriptor, _HEAD.pack(key, hashlib.sha256(code).digest(), len(code)) + code)

    def _pieces(self) -> Iterator[tuple[bytes, bytes, int, int]]:
        at = 0
        while len(head := os.pread(self._descriptor, _HEAD.size, at)) == _HEAD.size:
            key, digest, length = _HEAD.unpack(head)
            yield key, digest, at + _HEAD.size, length
            # After a piece that a kill has cut short, nothing is found, and all is compiled.
            at += _HEAD.size + length


class _Library:
    """WasmEdge's, which compiles what isn't kept."""

    def __init__(self, kept: _KeptCode) -> None:
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(library, name)

    def WasmEdge_CompilerCompileFromBuffer(self, compiler: Any, buffer: Any, length: int, path: bytes) -> int:
        kept = self._kept
        kept.made_of = b""
        if not forked_programs.real_compilation:
            kept.open()
            key = kept.key(bytes(ffi.buffer(buffer, length)))
            if (code := kept.find(key)) is not None:
                # As LLVM and lld leave it: see `aot_compile.is_linked`.
                unfinished = Path(os.fsdecode(path)).with_suffix(".o")
                unfinished.write_bytes(code)
                unfinished.rename(os.fsdecode(path))
                return 0
            kept.made_of = key
        return int(library.WasmEdge_CompilerCompileFromBuffer(compiler, buffer, length, path))


def _compiler(kept: _KeptCode, make: Callable[..., Any], level: int, *, second_memory: bool) -> Any:
    """WasmEdge's, whose options are a part of the key."""
    kept.options = level, second_memory
    return make(level, second_memory=second_memory)


def _take(kept: _KeptCode, take: Callable[[Path, Path], AotFile], code_file: Path, path: Path) -> AotFile:
    """Take the code that was linked; keep what LLVM has made."""
    if kept.made_of:
        kept.add(kept.made_of, code_file.read_bytes())
    return take(code_file, path)


def _enter(kept: _KeptCode, enter: Callable[[ProcessKind], None], kind: ProcessKind) -> None:
    """Fence a node's child."""
    if kind == "compiler":
        kept.open()
    enter(kind)


def _enclose(kept: _KeptCode, enclose: Callable[..., None], files: Iterable[tuple[Path, Access]] = ()) -> None:
    """Fence a command's child; those that compile may see what the processor can do."""
    if PROCESSOR in (files := list(files)):
        kept.open()
    enclose(files)
