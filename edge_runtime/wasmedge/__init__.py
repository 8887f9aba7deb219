"""A binding of WasmEdge's C API (version 0.14.1 only), as far as the edge runtime needs it.

Importing this package opens libwasmedge.so.0; `LibraryMissing` says what to install. May import `aot_cache` and
`files`, and knows nothing of functions, ABIs or the node. Start with `instance` (how a module is run), then `memory`
(why a guest can't leave its sandbox), `module` and `host` (host functions); `c_api` has the C API itself, and
`aot_compile` the compiler.
"""

from edge_runtime.aot_cache import BEST, QUICK, AotFile, Damaged, find, verify
from edge_runtime.wasmedge.aot_compile import compile_module
from edge_runtime.wasmedge.errors import (
    CompileError,
    HandleClosed,
    LibraryMissing,
    LinkError,
    LoadError,
    Trap,
    Unsafe,
    WasmEdgeError,
)
from edge_runtime.wasmedge.host import HostFunction, HostModule, Signature
from edge_runtime.wasmedge.image import Image
from edge_runtime.wasmedge.instance import EntryPoint, Program, failed
from edge_runtime.wasmedge.memory import PAGE, Memory, check_address_space, check_refusals
from edge_runtime.wasmedge.module import Config, MemoryExport, Module
from edge_runtime.wasmedge.outer import OuterModule, engine, value_type

__all__ = [
    "BEST",
    "PAGE",
    "QUICK",
    "AotFile",
    "CompileError",
    "Config",
    "Damaged",
    "EntryPoint",
    "HandleClosed",
    "HostFunction",
    "HostModule",
    "Image",
    "LibraryMissing",
    "LinkError",
    "LoadError",
    "Memory",
    "MemoryExport",
    "Module",
    "OuterModule",
    "Program",
    "Signature",
    "Trap",
    "Unsafe",
    "WasmEdgeError",
    "check_address_space",
    "check_refusals",
    "compile_module",
    "engine",
    "failed",
    "find",
    "value_type",
    "verify",
]
