"""The outer module: compiled code whose only function calls a host function, in which other code then runs.

When compiled code is entered from outside, WasmEdge sets six signal handlers and restores them at the end, which costs
as much as running a small guest. When it is entered from compiled code, WasmEdge sets none.
"""

from pathlib import Path
from typing import Final

from edge_runtime.wasmedge.c_api import Name, address, check, ffi, library
from edge_runtime.wasmedge.host import HostModule, value_types
from edge_runtime.wasmedge.instance import Executor, ImportStore
from edge_runtime.wasmedge.module import Config, Module

NAME: Final = "skerry: outer"
"""The module of the import, whose function is `loop`."""

_ENGINE: Final = {
    "instantiate": "WasmEdge_ExecutorInstantiate",
    "invoke": "WasmEdge_ExecutorInvoke",
    "delete_instance": "WasmEdge_ModuleInstanceDelete",
    "find_function": "WasmEdge_ModuleInstanceFindFunction",
    "memory_pages": "WasmEdge_MemoryInstanceGetPageSize",
}


class OuterModule:
    """An instance of the outer module; it lives as long as the process."""

    def __init__(self, compiled: Path, entered: int) -> None:
        """`entered` is the address of the C function that serves as the host function.

        Raises: WasmEdgeError, when the file isn't the outer module; OSError, when it can't be read.
        """
        config = Config(memory_pages=1)
        host = HostModule(NAME, {"loop": (("", ""), _never)}, replace=lambda _name, _callback: (entered, 0))
        module = Module.from_file(compiled, config)
        executor = Executor(config)
        store = ImportStore(executor, [host])
        instance = ffi.new("WasmEdge_ModuleInstanceContext **")
        check(library.WasmEdge_ExecutorInstantiate(executor.pointer, instance, store.pointer, module.pointer))
        name = Name("run")
        function = library.WasmEdge_ModuleInstanceFindFunction(instance[0], name.value)
        self._kept = (config, host, module, executor, store, instance, name)
        self.executor = address(executor.pointer)
        self.function = address(function)


def engine() -> dict[str, int]:
    """Return the addresses of WasmEdge's functions that run guests."""
    return {field: address(ffi.addressof(library, name)) for field, name in _ENGINE.items()}


def value_type(letter: str) -> bytes:
    """Return WasmEdge's eight bytes for a type, as in a `Signature`."""
    return bytes(ffi.buffer(value_types(letter))[:8])


def _never() -> None:
    raise AssertionError("the C function is called in its place")
