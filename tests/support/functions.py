"""Loaded functions for tests, compiled once."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from edge_runtime.guest import Function, Limits
from edge_runtime.wasmedge import QUICK, AotFile, compile_module, find


def compiled(wasm: bytes, folder: Path, level: int = QUICK) -> AotFile:
    """The AOT file of these bytes in `folder`."""
    found = find(folder, hashlib.sha256(wasm).hexdigest(), level)
    return found or compile_module(wasm, folder, level)


def function(
    wasm: bytes, folder: Path, limits: Limits | None = None, config: Mapping[str, str] | None = None, name: str = "f"
) -> Function:
    """A function of these bytes, loaded in this process."""
    aot = compiled(wasm, folder)
    return Function.load(name, aot.path, aot.digest, limits or Limits(), config)
