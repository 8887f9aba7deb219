"""Our own binding of the WasmEdge 0.14.1 C API: what the edge runtime needs of it, and no more.

Importing this opens libwasmedge.so.0; LibraryMissing says what to install.
"""

from ..aot_cache import BEST, QUICK, AotFile, Damaged, find, verify
from .compile import compile_module
from .errors import Closed, CompileError, LibraryMissing, LinkError, LoadError, Trap, Unsafe, WasmEdgeError
from .host import HostModule, Signature
from .instance import Entry, Program
from .memory import PAGE, Memory, check_address_space, check_refusals
from .module import Config, MemoryExport, Module

__all__ = [
    "BEST",
    "PAGE",
    "QUICK",
    "AotFile",
    "Closed",
    "CompileError",
    "Config",
    "Damaged",
    "Entry",
    "HostModule",
    "LibraryMissing",
    "LinkError",
    "LoadError",
    "Memory",
    "MemoryExport",
    "Module",
    "Program",
    "Signature",
    "Trap",
    "Unsafe",
    "WasmEdgeError",
    "check_address_space",
    "check_refusals",
    "compile_module",
    "find",
    "verify",
]
