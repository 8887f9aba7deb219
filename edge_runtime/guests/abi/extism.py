"""The Extism ABI: what a plug-in may import, and which of its exports are functions to call. Pure.

Handles and lengths are i64. Source: the documentation of Extism's kernel and of its PDKs.
"""

from collections.abc import Mapping

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
"""The functions of `ENV` that kernel.wat implements."""

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
"""The functions of `ENV` that the host implements."""

USERS: dict[str, Signature] = {"http": ("I", "I"), "sql": ("I", "I")}
"""The functions of `USER`. They take and return handles of JSON, in the form of `skerry.http` and `skerry.sql`."""

OFFERED = {ENV: KERNEL | HOST, USER: USERS}

_INITIALIZE, _CONSTRUCTORS, _HASKELL = "_initialize", "__wasm_call_ctors", "hs_init"
_NOT_CALLED = "asyncify_"
"""Prefix of the exports of Binaryen's Asyncify, which TinyGo adds."""


def is_entry(name: str, signature: Signature | None) -> bool:
    """Return whether an export is a function that calls may name: it takes nothing and returns nothing or an i32 (0 for
    success), and isn't one that languages export for their own use."""
    own = name in (_INITIALIZE, _CONSTRUCTORS) or name.startswith(_NOT_CALLED)
    return signature in (("", "i"), ("", "")) and not own


def initializers(functions: Mapping[str, Signature]) -> list[str]:
    """Return which of a plug-in's exports are called before its function, as Extism's host does: the constructors, or
    `_initialize` if they aren't exported; Haskell's runtime is started after `_initialize`."""
    haskell = [_HASKELL] if _HASKELL in functions else []
    first = _CONSTRUCTORS if _CONSTRUCTORS in functions and not haskell else _INITIALIZE
    return [*([first] if functions.get(first) == ("", "") else []), *haskell]


def is_plugin(shape: Shape) -> bool:
    """Return whether the module is a plug-in, whatever its exports are: without an import from Extism it couldn't
    answer."""
    return any(each.module in OFFERED for each in shape.imports)


def entries(shape: Shape) -> list[str]:
    """Return the functions that calls may name.

    Raises: Malformed, when an export names a function that doesn't exist.
    """
    functions = [name for name, (kind, _) in shape.exports.items() if kind == FUNCTION]
    return sorted(name for name in functions if is_entry(name, shape.export_signature(name)))
