"""Loaded functions for tests, compiled once."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from control.protocol.manifest import Manifest, manifest_digest
from edge_runtime.guests.function_code import compile_artifact
from edge_runtime.guests.guest import CallLimits, LoadedFunction
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.wasmedge import QUICK, AotFile, find
from edge_runtime.wasmedge.split import Split, split
from tests.guests.build import guest


def compiled(wasm: bytes, folder: Path, level: int = QUICK) -> AotFile:
    """Compile these bytes into `folder`, unless that was done, and return the AOT file."""
    found = find(folder, hashlib.sha256(wasm).hexdigest(), level)
    return found or compile_artifact(wasm, folder, level)


def local(aot: AotFile, name: str = "f", **manifest: Any) -> LocalFunction:
    """Return a function version as a node has it; `manifest` are the fields of its manifest."""
    made = Manifest(**manifest)
    return LocalFunction(name, 1, "", made, manifest_digest(made), str(aot.path), aot.digest)


def split_or_whole(wasm: bytes, folder: Path, name: str = "f", **manifest: Any) -> LocalFunction:
    """Return a function version as a node has it, in two parts where the module is a snapshot."""
    made = split(wasm)
    return (
        local(compiled(wasm, folder), name, **manifest) if made is None else split_local(made, folder, name, **manifest)
    )


def split_local(made: Split, folder: Path, name: str = "f", **manifest: Any) -> LocalFunction:
    """Return a function version of a snapshot in two parts, as a node has it: its engine compiled, its image a file."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        made.write_image(file)
    digest = hashlib.sha256(Path(file.name).read_bytes()).hexdigest()
    path = Path(file.name).rename(folder / f"{digest}.image")
    found = local(compiled(made.code, folder), name, **manifest)
    return msgspec.structs.replace(found, image=str(path), image_digest=digest, image_pages=made.pages)


def function(
    wasm: bytes,
    folder: Path,
    limits: CallLimits | None = None,
    config: Mapping[str, str] | None = None,
    name: str = "f",
    **manifest: Any,
) -> LoadedFunction:
    """A function of these bytes, loaded in this process; `manifest` are further fields of its manifest."""
    limits = limits or CallLimits()
    return LoadedFunction.load(
        local(
            compiled(wasm, folder),
            name,
            memory_pages=limits.memory_pages,
            response_limit=limits.response_bytes,
            log_bytes=limits.log_bytes,
            config=dict(config or {}),
            **manifest,
        )
    )


@contextmanager
def loading(folder: Path, **manifest: Any) -> Iterator[Callable[..., LoadedFunction]]:
    """Loads as `function` does, of bytes or the name of a test guest, and closes all at the end."""
    loaded: list[LoadedFunction] = []

    def load(wasm: bytes | str, *more: Any, **also: Any) -> LoadedFunction:
        wasm = guest(wasm) if isinstance(wasm, str) else wasm
        loaded.append(function(wasm, folder, *more, **manifest, **also))
        return loaded[-1]

    try:
        yield load
    finally:
        for each in loaded:
            each.close()
