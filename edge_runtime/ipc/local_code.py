"""Puts a function together with the code that it runs. Nothing here loads WasmEdge."""

from pathlib import Path

import msgspec

from edge_runtime.aot_cache import AotFile, ImageFile
from edge_runtime.ipc.frames import LocalFunction

Code = AotFile | ImageFile | Path
"""What a function runs: an AOT file; the artifact on the interpreter; or nothing yet, of a snapshot whose engine isn't
compiled."""


def with_code(function: LocalFunction, code: Code | None, artifact: Path | None = None) -> LocalFunction:
    """Return the function with its code, or without any. `artifact` runs in place of an AOT file that is damaged, and
    never in place of a snapshot's."""
    aot = code if isinstance(code, AotFile) else None
    image = code if isinstance(code, ImageFile) else None if aot is None else aot.image
    wasm = code if isinstance(code, Path) else artifact if aot is not None and image is None else None
    path, digest, pages = ("", "", 0) if image is None else (str(image.path), image.digest, image.pages)
    return msgspec.structs.replace(
        function,
        aot="" if aot is None else str(aot.path),
        aot_digest="" if aot is None else aot.digest,
        wasm="" if wasm is None else str(wasm),
        image=path,
        image_digest=digest,
        image_pages=pages,
    )
