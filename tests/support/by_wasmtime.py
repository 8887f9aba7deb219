"""What wasmtime makes of a module, to compare with. Always in a process of its own, by `with apart() as pool`: WasmEdge
takes the signal handlers away that wasmtime has set, and its next trap would end the process."""

import hashlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import wasmtime

import edge_runtime
from edge_runtime.guests import wasi
from edge_runtime.guests.abi import direct, extism
from edge_runtime.guests.abi.imports import WASI, WASI_SIGNATURES
from edge_runtime.guests.host_functions import not_granted
from edge_runtime.guests.invocation import Request
from edge_runtime.guests.wasi import Strings, Wasi

KERNEL = Path(edge_runtime.__file__).parent / "guests" / "abi" / "kernel.wasm"
FUEL = 1_000_000


def apart() -> ProcessPoolExecutor:
    """A process to call the others in."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def is_endless(wasm: bytes) -> bool:
    """Whether its `_start`, or a call by `direct`, loops or recurses without end, with host functions that succeed, or
    fail in one way or another."""
    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    return any(_ends_by(engine, wasm, errno) in ENDLESS for errno in (0, 21, 28))


ENDLESS = (wasmtime.TrapCode.STACK_OVERFLOW, wasmtime.TrapCode.OUT_OF_FUEL)


def _ends_by(engine: wasmtime.Engine, wasm: bytes, errno: int) -> wasmtime.TrapCode | None:
    """The trap that ends it; None for none."""
    store = wasmtime.Store(engine)
    store.set_fuel(FUEL)
    module = wasmtime.Module(engine, wasm)
    imports: list[Any] = [
        wasmtime.Func(store, found.type, lambda *_, results=bool(found.type.results): errno if results else None)
        for found in module.imports
    ]
    try:
        exports = wasmtime.Instance(store, module, imports).exports(store)
        if "_start" in exports:
            called(store, exports["_start"])
        else:
            piece = direct.encode(Request("POST", body=b"hello"), "f")
            address = called(store, exports["skerry_alloc"], len(piece))
            memory: Any = exports["memory"]
            memory.write(store, piece, address)
            called(store, exports["skerry_handle"], address, len(piece))
    except wasmtime.Trap as trap:
        return trap.trap_code
    except wasmtime.WasmtimeError:
        return None
    return None


def run(wasm: bytes, abi: str) -> tuple[str, str]:
    """The trap, "" for none, and the digest of the memory: "" for a module that traps before its memory can be looked
    at, as by data beyond the memory's end. A plug-in's kernel is another module here."""
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    engine = wasmtime.Engine(config)
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    memory = Theirs()
    served = Wasi(memory)
    served.begin(Strings(()), Strings(()), b"", 1 << 20, 1 << 14)
    for name, (_, call) in served.functions().items():
        linker.define_func(
            WASI,
            name,
            _type(WASI_SIGNATURES[name]),
            _host(memory, call),
            access_caller=True,
        )
    # The answer is as long as the runtime's own.
    linker.define_func(
        "skerry", "sql", _type(("ii", "i")), lambda *_: len(not_granted("SQL", "`sql` to read or write"))
    )
    if abi == "extism":
        kernel = wasmtime.Instance(store, wasmtime.Module(engine, KERNEL.read_bytes()), []).exports(store)
        for name in extism.KERNEL:
            linker.define(store, extism.ENV, name, kernel[name])
    trap = ""
    exports: Any = None
    try:
        exports = linker.instantiate(store, wasmtime.Module(engine, wasm)).exports(store)
        exports["run" if abi == "extism" else "_start"](store)
    except wasmtime.Trap as error:
        trap = error.trap_code.name if error.trap_code is not None else str(error)
    return trap, "" if exports is None else hashlib.sha256(bytes(exports["memory"].read(store))).hexdigest()


def calls(wasm: bytes, runs: list[list[tuple[str, list[int]]]]) -> list[list[int | str]]:
    """What a module's functions answer, called one after the other, each run in a fresh instance: unsigned numbers, and
    "trap" at its end where it traps."""
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    engine = wasmtime.Engine(config)
    module = wasmtime.Module(engine, wasm)
    found = []
    for run in runs:
        store = wasmtime.Store(engine)
        exports: Any = wasmtime.Instance(store, module, []).exports(store)
        answers: list[int | str] = []
        try:
            for name, arguments in run:
                answers.append(exports[name](store, *[a - (a >> 31 << 32) for a in arguments]) & 0xFFFF_FFFF)
        except wasmtime.Trap:
            answers.append("trap")
        found.append(answers)
    return found


class Theirs:
    """A memory of wasmtime's, as `Wasi` wants it."""

    buffer: Any = b""
    size = 0

    def need(self, end: int) -> None:
        if end > self.size:
            raise IndexError(end)

    def read(self, start: int, length: int) -> bytes:
        self.need(start + length)
        return bytes(self.buffer[start : start + length])

    def write(self, start: int, data: bytes) -> None:
        self.need(start + len(data))
        self.buffer[start : start + len(data)] = data


def _host(memory: Theirs, call: Callable[..., Any]) -> Callable[..., Any]:
    def called(caller: wasmtime.Caller, *arguments: int) -> Any:
        found: Any = caller["memory"]
        memory.buffer = memoryview(found.get_buffer_ptr(caller)).cast("B")
        memory.size = len(memory.buffer)
        try:
            # As unsigned numbers; none of the shapes has an i64.
            return call(*[argument & 0xFFFFFFFF for argument in arguments])
        except IndexError:
            return wasi.FAULT

    return called


def _type(signature: tuple[str, str]) -> wasmtime.FuncType:
    kinds = {"i": wasmtime.ValType.i32, "I": wasmtime.ValType.i64}
    return wasmtime.FuncType(*[[kinds[letter]() for letter in letters] for letters in signature])


def handled(wasm: bytes, request: bytes) -> bytes:
    """What a library of the ABI `direct` that needs nothing of the host's answers a request, as it lies in memory."""
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, wasm)
    linker = wasmtime.Linker(store.engine)
    linker.define_unknown_imports_as_traps(module)
    exports = linker.instantiate(store, module).exports(store)
    memory: Any = exports["memory"]
    if "_initialize" in exports:
        called(store, exports["_initialize"])
    address = called(store, exports["skerry_alloc"], len(request))
    memory.write(store, request, address)
    answer = called(store, exports["skerry_handle"], address, len(request))
    start, size = answer >> 32 & 0xFFFFFFFF, answer & 0xFFFFFFFF
    return bytes(memory.read(store, start, start + size))


def called(store: wasmtime.Store, function: Any, *numbers: int) -> Any:
    """What an exported function returns."""
    return function(store, *numbers)
