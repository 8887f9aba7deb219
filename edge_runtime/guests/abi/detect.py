"""Which ABI a module speaks, or why no node can run it. Pure: it depends only on the module's bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

from edge_runtime.errors import CodedError
from edge_runtime.guests.abi import binary, direct, extism, other_hosts
from edge_runtime.guests.abi.binary import FUNCTION, MEMORY, Import, Shape
from edge_runtime.guests.abi.imports import OFFERED, SKERRY, WASI

SIZE_LIMIT = 64 * 1024 * 1024
PAGES_LIMIT = 16_384
"""The most pages of 64 KiB that a manifest can allow."""
TABLE_LIMIT = 1_000_000
"""Entries of all tables together: each costs the worker 16 bytes, which memory_pages doesn't count."""
LOCALS_LIMIT = 50_000
"""Local variables of one function: the common limit of engines, as `VALUES_LIMIT` is."""
ALL_LOCALS_LIMIT = 2_000_000
"""Local variables of all functions together: for this many, the compiler takes 10 s and 2 GB."""
VALUES_LIMIT = 1000
"""Parameters of one function type, and its results."""
ALL_VALUES_LIMIT = 100_000
"""Parameters and results of all function types together."""

_SHOWN = 8


class ModuleRefused(CodedError):
    """No node can run this module; the message says why, and what to do."""


@dataclass(frozen=True)
class Detected:
    """What `detect` found out about a module that nodes can run."""

    abi: str
    memory_pages: int
    """Pages that its memory starts with: a manifest's memory_pages must be at least this."""
    memory_maximum: int | None
    sql: bool
    """Whether it imports `sql`: then its manifest should grant SQL."""
    start: bool
    """Whether it has a start section."""


def detect(wasm: bytes, *, size_limit: int = SIZE_LIMIT, pages_limit: int = PAGES_LIMIT) -> Detected:
    """Return which ABI a module speaks and what it needs.

    Raises: ModuleRefused, when no node can run it.
    """
    if len(wasm) > size_limit:
        raise ModuleRefused("module_too_large", f"It has {len(wasm)} bytes; {size_limit} are allowed.")
    if wasm[:8] == binary.MAGIC + binary.COMPONENT_VERSION:
        raise ModuleRefused("module_component", other_hosts.component(wasm))
    if wasm[:4] != binary.MAGIC and (told := other_hosts.text(wasm)):
        raise ModuleRefused("module_source", told)
    try:
        shape = binary.read(wasm)
        exported = {name: shape.export_signature(name) for name in ("_start", *direct.SIGNATURES)}
        entries = extism.entries(shape)
    except binary.GarbageCollected:
        raise ModuleRefused(
            "module_gc",
            "It has types of WebAssembly's garbage collection, as what Kotlin, Dart or Java compile to, and nodes "
            "don't run these: write the function in another language "
            f"({other_hosts.LANGUAGES}), `skerry function new NAME`.",
        ) from None
    except binary.Malformed as error:
        raise ModuleRefused("module_invalid", f"It is no valid module: {error}.") from None
    if shape.native:
        raise ModuleRefused(
            "module_native",
            "It brings machine code, in a custom section `wasmedge`: nodes compile modules themselves. Upload the "
            "module as it was before `wasmedge compile`.",
        )
    _refuse_other_abis(shape)
    abi, offered, least = "direct" if exported[direct.HANDLE] else "wagi", OFFERED, 1
    if extism.is_plugin(shape):
        # A plug-in whose memory has no pages gets one (`merge`).
        abi, offered, least = extism.ABI, OFFERED | extism.OFFERED, 0
        _check_plugin(shape, entries)
    elif abi == "direct":
        _check_direct(exported)
    else:
        _check_entry(shape, exported["_start"])
    _check_imports(shape.imports, offered)
    memory = _memory(shape, pages_limit, least)
    _check_tables(shape)
    _check_cost(shape)
    return Detected(
        abi=abi,
        memory_pages=max(1, memory.minimum),
        memory_maximum=memory.maximum,
        sql=any((each.module, each.name) in ((SKERRY, "sql"), (extism.USER, "sql")) for each in shape.imports),
        start=shape.start,
    )


def _refuse_other_abis(shape: Shape) -> None:
    modules = {each.module for each in shape.imports}
    functions = {each.name for each in shape.imports if each.module == "env"} | set(shape.exports)
    if told := other_hosts.recognized(shape):
        raise ModuleRefused("abi_other_host", told)
    if any(module.startswith("wasi:http/") for module in modules):
        raise ModuleRefused(
            "abi_wasi_http",
            "It is made for wasi:http, which needs the component model that WasmEdge lacks: answer by WAGI, "
            "with a `main` that writes headers, a blank line and the body to stdout.",
        )
    if "wapc" in modules or "__guest_call" in shape.exports:
        raise ModuleRefused("abi_wapc", "It is a waPC guest, which is not supported: answer by WAGI, from `main`.")
    if any(name.startswith(("proxy_on_", "proxy_abi_version", "proxy_log")) for name in functions):
        raise ModuleRefused("abi_proxy_wasm", "It is a proxy-wasm filter, for a proxy and not for an edge function.")
    if "http_handler" in modules:
        raise ModuleRefused(
            "abi_http_wasm", "It is an http-wasm handler, which is not supported: answer by WAGI, from `main`."
        )
    if modules & {"wasi_unstable", "wasi"}:
        raise ModuleRefused(
            "abi_wasi_unstable", f"It is made for a WASI older than preview 1: build it again for {WASI}."
        )


def _check_entry(shape: Shape, entry: binary.Signature | None) -> None:
    if entry is None:
        hint = (
            "It was built as a library (`_initialize`): build a command, with a `main`."
            if "_initialize" in shape.exports
            else "Build a command, with a `main`, for WASI preview 1."
        )
        exported = _listed([name for name, (kind, _) in shape.exports.items() if kind == FUNCTION])
        raise ModuleRefused(
            "abi_unknown", f"It exports no function `_start` (it exports {exported or 'no function'}). {hint}"
        )
    if entry != ("", ""):
        raise ModuleRefused(
            "abi_unknown", "Its `_start` takes or returns values; a command's takes and returns nothing."
        )


def _check_plugin(shape: Shape, entries: list[str]) -> None:
    if not entries:
        exported = _listed([name for name, (kind, _) in shape.exports.items() if kind == FUNCTION])
        raise ModuleRefused(
            "abi_unknown",
            "It is an Extism plug-in, and exports no function to call, which takes nothing and returns an i32 "
            f"(it exports {exported or 'no function'}).",
        )


def _check_direct(exported: Mapping[str, binary.Signature | None]) -> None:
    for name, signature in direct.SIGNATURES.items():
        if exported[name] != signature:
            raise ModuleRefused(
                "abi_unknown",
                f"It exports {direct.HANDLE}, and {name} as {_signature(exported[name])}; "
                f"it must be {_signature(signature)}.",
            )


def _check_imports(imports: list[Import], offered: Mapping[str, Mapping[str, binary.Signature]]) -> None:
    unknown = [
        f"{each.module}.{each.name}"
        for each in imports
        if each.kind != MEMORY and (each.kind != FUNCTION or each.name not in offered.get(each.module, {}))
    ]
    if unknown:
        modules = " and ".join(offered)
        hint = " An import from `env` is mostly a symbol that was not linked." if "env." in str(unknown) else ""
        raise ModuleRefused("imports_unknown", f"It imports {_listed(unknown)}; nodes offer {modules} alone.{hint}")
    for each in imports:
        if each.kind == FUNCTION and each.signature != offered[each.module][each.name]:
            raise ModuleRefused(
                "imports_mismatch",
                f"It imports {each.module}.{each.name} as {_signature(each.signature)}; "
                f"it is {_signature(offered[each.module][each.name])}.",
            )


def _memory(shape: Shape, pages_limit: int, least: int) -> binary.ResizableLimits:
    if any(each.kind == MEMORY for each in shape.imports):
        raise ModuleRefused("memory_imported", "It imports its memory: build it without --import-memory.")
    if not shape.memories:
        raise ModuleRefused("memory_missing", "It has no memory; a function has exactly one, exported as `memory`.")
    if len(shape.memories) > 1:
        raise ModuleRefused("memory_several", f"It has {len(shape.memories)} memories; a function has exactly one.")
    if [name for name, (kind, _) in shape.exports.items() if kind == MEMORY] != ["memory"]:
        raise ModuleRefused("memory_not_exported", "It must export its memory as `memory`, and under no other name.")
    memory = shape.memories[0]
    if memory.wide:
        raise ModuleRefused("memory_64", "Its memory has 64-bit addresses: build it for wasm32.")
    if memory.shared:
        raise ModuleRefused("memory_shared", "Its memory is shared between threads, which functions can't start.")
    if memory.minimum < least:
        raise ModuleRefused("memory_zero", "Its memory starts with no page; it must have one at least.")
    if memory.minimum > pages_limit:
        raise ModuleRefused(
            "memory_above_limit",
            f"Its memory starts with {memory.minimum} pages of 64 KiB; {pages_limit} are allowed (memory_pages).",
        )
    return memory


def _check_tables(shape: Shape) -> None:
    entries = sum(table.minimum for table in shape.tables)
    if entries > TABLE_LIMIT:
        raise ModuleRefused("table_too_large", f"Its tables start with {entries} entries; {TABLE_LIMIT} are allowed.")
    most = [table.maximum for table in shape.tables]
    if shape.may_grow_tables and (None in most or sum(entry or 0 for entry in most) > TABLE_LIMIT):
        raise ModuleRefused(
            "table_unbounded",
            f"It can grow its tables beyond the {TABLE_LIMIT} entries that are allowed: give them a maximum "
            "(build it without --growable-table).",
        )


def _check_cost(shape: Shape) -> None:
    """Check the parts that take few bytes in a module but much of the compiler's time and memory.

    Raises: ModuleRefused, when there is too much of it.
    """
    values = [len(letters) for signature in shape.signatures for letters in signature]
    for count, limit, what in (
        (shape.most_locals, LOCALS_LIMIT, "local variables in one function"),
        (shape.locals, ALL_LOCALS_LIMIT, "local variables in all"),
        (max(values, default=0), VALUES_LIMIT, "parameters or results in one function type"),
        (sum(values), ALL_VALUES_LIMIT, "parameters and results in all function types"),
    ):
        if count > limit:
            raise ModuleRefused("module_too_complex", f"It has {count} {what}; {limit} are allowed.")


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _signature(signature: binary.Signature | None) -> str:
    if signature is None:
        return "no function"
    names = {"i": "i32", "I": "i64", "f": "f32", "F": "f64", "v": "v128", "r": "funcref", "e": "externref"}
    parameters, results = (", ".join(names[letter] for letter in part) for part in signature)
    return f"({parameters}) -> ({results})"
