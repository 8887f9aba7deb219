"""A loaded and validated module, and the configuration for loading and running it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge_runtime.wasmedge.c_api import CData, Handle, check, ffi, library
from edge_runtime.wasmedge.host import Signature
from edge_runtime.wasmedge.memory_imports import import_memories

_FUNCTION, _MEMORY = 0, 2
"""Values of WasmEdge_ExternalType (enum.inc: Function 0, Table 1, Memory 2, Global 3)."""
MULTI_MEMORIES = 11
"""WasmEdge_Proposal_MultiMemories."""


class Config(Handle):
    """The configuration of a loader or an executor. `memory_pages` is the most pages of 64 KiB that a memory can have,
    `second_memory` whether a module may have two memories."""

    _delete = "WasmEdge_ConfigureDelete"

    def __init__(self, *, memory_pages: int, second_memory: bool = False) -> None:
        self._own(library.WasmEdge_ConfigureCreate())
        self.memory_pages = memory_pages
        library.WasmEdge_ConfigureSetMaxMemoryPage(self.pointer, memory_pages)
        if second_memory:
            library.WasmEdge_ConfigureAddProposal(self.pointer, MULTI_MEMORIES)


@dataclass(frozen=True)
class MemoryExport:
    """An exported memory as the module declares it, in pages of 64 KiB."""

    name: str
    minimum: int
    maximum: int | None


class Module(Handle):
    """A loaded and validated module: WebAssembly to be interpreted, or an AOT file that `compile_module` made."""

    _delete = "WasmEdge_ASTModuleDelete"

    shared: bool = False
    """Whether several programs have it, so that it is deleted with the last of them."""

    def __init__(self, pointer: CData) -> None:
        self._own(pointer)

    @classmethod
    def from_bytes(cls, wasm: bytes, config: Config) -> Self:
        """Load and validate WebAssembly. It can be run if it comes from `import_memories`.

        Raises: LoadError, when WasmEdge refuses the bytes.
        """
        with _Loader(config, native=False) as loader:
            data = ffi.new("WasmEdge_Bytes *", (len(wasm), ffi.from_buffer("uint8_t[]", wasm)))
            out = ffi.new("WasmEdge_ASTModuleContext **")
            check(library.WasmEdge_LoaderParseFromBytes(loader.pointer, out, data[0]))
        return cls._validated(out[0], config)

    @classmethod
    def from_file(cls, path: Path, config: Config) -> Self:
        """Load and validate a file of WebAssembly, or an AOT file. The caller has checked its digest: WasmEdge doesn't
        refuse a damaged AOT file, which crashes the process or computes wrong results.

        Raises: LoadError, when WasmEdge refuses the file; OSError, when it can't be read.
        """
        with path.open("rb") as file:
            plain = file.read(4) == b"\0asm"
        if plain:
            return cls.from_bytes(import_memories(path.read_bytes()), config)
        with _Loader(config, native=True) as loader:
            out = ffi.new("WasmEdge_ASTModuleContext **")
            check(library.WasmEdge_LoaderParseFromFile(loader.pointer, out, bytes(path)))
        return cls._validated(out[0], config)

    @classmethod
    def _validated(cls, pointer: CData, config: Config) -> Self:
        module = cls(pointer)
        try:
            with _Validator(config) as validator:
                check(library.WasmEdge_ValidatorValidate(validator.pointer, module.pointer))
        except BaseException:
            module.close()
            raise
        return module

    def memories(self) -> list[MemoryExport]:
        """Return the exported memories."""
        exported = []
        for name, export in self._exports(_MEMORY):
            limit = library.WasmEdge_MemoryTypeGetLimit(library.WasmEdge_ExportTypeGetMemoryType(self.pointer, export))
            exported.append(MemoryExport(name, limit.Min, limit.Max if limit.HasMax else None))
        return exported

    def memory_sources(self) -> list[str]:
        """Return the name of the module from which each memory is imported."""
        count = library.WasmEdge_ASTModuleListImportsLength(self.pointer)
        imports = ffi.new("const WasmEdge_ImportTypeContext *[]", count)
        library.WasmEdge_ASTModuleListImports(self.pointer, imports, count)
        return [
            _text(library.WasmEdge_ImportTypeGetModuleName(each))
            for each in imports
            if library.WasmEdge_ImportTypeGetExternalType(each) == _MEMORY
        ]

    def functions(self) -> dict[str, Signature]:
        """Return the exported functions with their signatures, where `?` stands for any type other than i32 and i64."""
        kinds = {
            name: library.WasmEdge_ExportTypeGetFunctionType(self.pointer, export)
            for name, export in self._exports(_FUNCTION)
        }
        return {
            name: (
                _letters(
                    kind, library.WasmEdge_FunctionTypeGetParametersLength, library.WasmEdge_FunctionTypeGetParameters
                ),
                _letters(kind, library.WasmEdge_FunctionTypeGetReturnsLength, library.WasmEdge_FunctionTypeGetReturns),
            )
            for name, kind in kinds.items()
        }

    def _exports(self, kind: int) -> list[tuple[str, CData]]:
        count = library.WasmEdge_ASTModuleListExportsLength(self.pointer)
        exports = ffi.new("const WasmEdge_ExportTypeContext *[]", count)
        library.WasmEdge_ASTModuleListExports(self.pointer, exports, count)
        exported = []
        for export in exports:
            if library.WasmEdge_ExportTypeGetExternalType(export) == kind:
                exported.append((_text(library.WasmEdge_ExportTypeGetExternalName(export)), export))
        return exported


def _text(name: CData) -> str:
    return str(ffi.buffer(name.Buf, name.Length)[:].decode())


def _letters(kind: CData, length: Callable[..., int], get: Callable[..., int]) -> str:
    count = length(kind)
    types = ffi.new("WasmEdge_ValType[]", count)
    get(kind, types, count)
    return "".join([_letter(types[position]) for position in range(count)])


def _letter(kind: CData) -> str:
    if library.WasmEdge_ValTypeIsI32(kind):
        return "i"
    return "I" if library.WasmEdge_ValTypeIsI64(kind) else "?"


class _Loader(Handle):
    _delete = "WasmEdge_LoaderDelete"

    def __init__(self, config: Config, *, native: bool) -> None:
        """`native` says whether machine code is loaded, and thereby trusted. A plain module can hold machine code too,
        in a custom section `wasmedge`."""
        library.WasmEdge_ConfigureSetForceInterpreter(config.pointer, not native)
        # The loader keeps a copy of the configuration.
        self._own(library.WasmEdge_LoaderCreate(config.pointer))
        library.WasmEdge_ConfigureSetForceInterpreter(config.pointer, False)


class _Validator(Handle):
    _delete = "WasmEdge_ValidatorDelete"

    def __init__(self, config: Config) -> None:
        self._own(library.WasmEdge_ValidatorCreate(config.pointer))
