"""Calls of WASI's functions, made one after the other in an instance of ours or of wasmtime's: what each answers, and
what it leaves in the memory."""

import ctypes
import functools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import wasmtime
from wasmtime import _ffi

from edge_runtime.guests.abi.imports import WASI, WASI_SIGNATURES
from edge_runtime.guests.host_functions import host
from edge_runtime.guests.wasi import Exit, Strings
from edge_runtime.wasmedge import Config, EntryPoint, Module, Program, Trap
from edge_runtime.wasmedge.memory_imports import import_memories
from tests.guests.build import wat

PAGE = 65536


class Write(NamedTuple):
    """Puts bytes into the memory before the next call."""

    at: int
    data: bytes


class Call(NamedTuple):
    """Calls a function. `mask` are a start and a length of bytes that are each run's own: they are set to zeros after
    the call."""

    name: str
    arguments: tuple[int, ...]
    mask: tuple[int, int] = (0, 0)


class Setup(NamedTuple):
    """What a program is started with."""

    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    stdin: bytes = b""


class Answer(NamedTuple):
    """What a call answered, and a checksum of the memory after it."""

    errno: int | Literal["trap", "exit"]
    checksum: int = 0
    code: int = 0
    """The code of an exit."""


class Made(NamedTuple):
    """What a run of calls led to."""

    answers: list[Answer]
    memory: bytes
    stdout: bytes
    stderr: bytes


Step = Write | Call


@functools.cache
def _wrappers(pages: int) -> bytes:
    """A module whose exports call the functions that it imports, with a memory of so many pages. An i64 is two i32s."""
    imports, exports = [], []
    for name, (parameters, results) in WASI_SIGNATURES.items():
        types = " ".join("i64" if letter == "I" else "i32" for letter in parameters)
        result = "(result i32)" if results else ""
        imports.append(f'(import "{WASI}" "{name}" (func ${name} (param {types}) {result}))')
        place, values = 0, ""
        for letter in parameters:
            low, high = (f"(i64.extend_i32_u (local.get {place + half}))" for half in (0, 1))
            wide = f"(i64.or {low} (i64.shl {high} (i64.const 32)))"
            values += wide if letter == "I" else f"(local.get {place})"
            place += 2 if letter == "I" else 1
        exports.append(f'(func (export "{name}") (param {"i32 " * place}) {result} (call ${name} {values}))')
    return wat(f'(module {" ".join(imports)} (memory (export "memory") {pages}) {" ".join(exports)})')


class Ours:
    """The functions as guests have them, on WasmEdge."""

    def __init__(self, pages: int) -> None:
        self._size = pages * PAGE
        config = Config(memory_pages=pages)
        self._entries = {
            name: EntryPoint(name, (parameters.replace("I", "ii"), results))
            for name, (parameters, results) in WASI_SIGNATURES.items()
        }
        module = Module.from_bytes(import_memories(_wrappers(pages)), config)
        self._program = Program(module, config, host().imports, list(self._entries.values()))

    def run(self, setup: Setup, steps: Sequence[Step]) -> Made:
        wasi, memory = host().wasi, host().memory
        wasi.begin(Strings(setup.arguments), Strings(setup.variables), setup.stdin, 1 << 20, 1 << 20)
        answers: list[Answer] = []
        with self._program.open(memory):
            for step in steps:
                if isinstance(step, Write):
                    memory.write(step.at, step.data)
                    continue
                try:
                    errno = self._program.call(self._entries[step.name], *_words(step))
                except Exit as ended:
                    answers.append(Answer("exit", code=ended.code))
                    break
                except Trap:
                    answers.append(Answer("trap"))
                    break
                memory.write(step.mask[0], bytes(step.mask[1]))
                answers.append(Answer(errno, zlib.crc32(memory.read(0, self._size))))
            return Made(answers, memory.read(0, self._size), wasi.stdout, wasi.stderr)

    def close(self) -> None:
        self._program.close()


@contextmanager
def ours(pages: int = 1) -> Iterator[Ours]:
    made = Ours(pages)
    try:
        yield made
    finally:
        made.close()


@functools.cache
def _linked(pages: int) -> tuple[wasmtime.Linker, wasmtime.Module]:
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    return linker, wasmtime.Module(engine, _wrappers(pages))


class _Running:
    """A module in wasmtime, with its standard streams."""

    def __init__(self, linker: wasmtime.Linker, setup: Setup) -> None:
        self.store, config = wasmtime.Store(linker.engine), wasmtime.WasiConfig()
        self.stdout, self.stderr = bytearray(), bytearray()
        config.argv = list(setup.arguments)
        config.env = [variable.split("=", 1) for variable in setup.variables]
        config.stdout_custom = self.stdout.extend
        config.stderr_custom = self.stderr.extend
        # Of a file it wouldn't always be ready; for bytes wasmtime's Python has no method of its own.
        _ffi.wasi_config_set_stdin_bytes(config.ptr(), ctypes.byref(_ffi.bytes_to_capi(setup.stdin)))
        self.store.set_wasi(config)


def by_wasmtime(setup: Setup, steps: Sequence[Step], pages: int = 1) -> Made:
    """The same by wasmtime, in a process of its own (`by_wasmtime.apart`)."""
    linker, module = _linked(pages)
    running = _Running(linker, setup)
    store = running.store
    exports: Any = linker.instantiate(store, module).exports(store)
    memory, answers = exports["memory"], []
    for step in steps:
        if isinstance(step, Write):
            memory.write(store, step.data, step.at)
            continue
        try:
            errno = exports[step.name](store, *[word - (word >> 31 << 32) for word in _words(step)])
        except wasmtime.ExitTrap as ended:
            answers.append(Answer("exit", code=ended.code))
            break
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            answers.append(Answer("trap"))
            break
        memory.write(store, bytes(step.mask[1]), step.mask[0])
        answers.append(Answer(errno, zlib.crc32(memory.read(store, 0, pages * PAGE))))
    return Made(answers, bytes(memory.read(store, 0, pages * PAGE)), bytes(running.stdout), bytes(running.stderr))


def program_by_wasmtime(wasm: bytes, setup: Setup) -> tuple[int | Literal["trap"], bytes, bytes]:
    """How a program with a `_start` ends, and what it writes to stdout and stderr."""
    linker, _ = _linked(1)
    running = _Running(linker, setup)
    code: int | Literal["trap"] = 0
    try:
        start: Any = linker.instantiate(running.store, wasmtime.Module(linker.engine, wasm)).exports(running.store)[
            "_start"
        ]
        start(running.store)
    except wasmtime.ExitTrap as ended:
        code = ended.code
    except (wasmtime.Trap, wasmtime.WasmtimeError):
        code = "trap"
    return code, bytes(running.stdout), bytes(running.stderr)


def _words(call: Call) -> list[int]:
    """The arguments as i32s, unsigned."""
    words = []
    for letter, number in zip(WASI_SIGNATURES[call.name][0], call.arguments, strict=True):
        words += [number & 0xFFFF_FFFF, number >> 32] if letter == "I" else [number]
    return words
