"""The Extism ABI: what a plug-in may import, and which of its exports are functions to call. Pure.

Source: the documentation of Extism's kernel and of its PDKs. Handles and lengths are i64.
"""

from collections.abc import Container

from edge_runtime.guests.abi.binary import FUNCTION, Shape, Signature

ABI = "extism"

ENV = "extism:host/env"
USER = "extism:host/user"

KERNEL: dict[str, Signature] = {
    "alloc": ("I", "I"),
    "error_set": ("I", ""),
    "free": ("I", ""),
    "input_length": ("", "I"),
    "input_load_u64": ("I", "I"),
    "input_load_u8": ("I", "i"),
    "input_offset": ("", "I"),
    "length": ("I", "I"),
    "length_unsafe": ("I", "I"),
    "load_u64": ("I", "I"),
    "load_u8": ("I", "i"),
    "output_set": ("II", ""),
    "store_u64": ("II", ""),
    "store_u8": ("Ii", ""),
}
"""Of `ENV`, those that kernel.wat has."""

LOGS = ("trace", "debug", "info", "warn", "error")

HOST: dict[str, Signature] = {
    "config_get": ("I", "I"),
    "get_log_level": ("", "i"),
    "http_headers": ("", "I"),
    "http_request": ("II", "I"),
    "http_status_code": ("", "i"),
    **{f"log_{level}": ("I", "") for level in LOGS},
    "var_get": ("I", "I"),
    "var_set": ("II", ""),
}
"""Of `ENV`, those that the host has."""

USERS: dict[str, Signature] = {"http": ("I", "I"), "sql": ("I", "I")}
"""Of `USER`: handles of JSON in and out, as `skerry.http` and `skerry.sql` have it."""

OFFERED = {ENV: KERNEL | HOST, USER: USERS}

_INITIALIZE, _CONSTRUCTORS, _HASKELL = "_initialize", "__wasm_call_ctors", "hs_init"
_NOT_CALLED = "asyncify_"
"""How names begin of what Binaryen's Asyncify exports (TinyGo has it added)."""


def is_entry(name: str, signature: Signature | None) -> bool:
    """Whether an export is a function that calls may name: it takes nothing and returns an i32 (0: done), or nothing;
    and it is none that languages export for their own use."""
    own = name in (_INITIALIZE, _CONSTRUCTORS) or name.startswith(_NOT_CALLED)
    return signature in (("", "i"), ("", "")) and not own


def initializers(exports: Container[str]) -> list[str]:
    """What is called before the first function, after `_initialize` (which calls the constructors by itself)."""
    constructors = [_CONSTRUCTORS] if _CONSTRUCTORS in exports and _INITIALIZE not in exports else []
    return constructors + ([_HASKELL] if _HASKELL in exports else [])


def is_plugin(shape: Shape) -> bool:
    """Whether the module is a plug-in, whatever else it is: one that doesn't import Extism could say nothing."""
    return any(found.module in OFFERED for found in shape.imports)


def entries(shape: Shape) -> list[str]:
    """The functions that calls may name. Error: Malformed."""
    functions = [name for name, (kind, _) in shape.exports.items() if kind == FUNCTION]
    return sorted(name for name in functions if is_entry(name, shape.export_signature(name)))
