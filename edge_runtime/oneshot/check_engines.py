"""`python -m edge_runtime.oneshot.check engines`: compiles the engines of snapshots, for the probes of later checks.

It reads `{"files": [PATH, …]}` on stdin: artifacts, of which those that aren't snapshots are left alone. It prints
`{"ok": true, "failed": ["FILE: why", …]}`. What is compiled is kept in the user's cache, up to `KEPT_BYTES`.
"""

import os
from pathlib import Path
from typing import Final

import orjson
from msgspec import Struct

from edge_runtime.aot_cache import users_folder
from edge_runtime.oneshot import compiled_code
from edge_runtime.oneshot.compiled_code import NotCompiled
from edge_runtime.sandbox import fence

KEPT_BYTES: Final = 1024**3
NICE: Final = 10
"""How far what serves comes first."""


class EnginesRequest(Struct):
    files: list[str]


def answer(request: EnginesRequest) -> bytes:
    """Compile the engines in turn; return the answer as JSON."""
    os.nice(NICE)
    # At once, since whoever asks may not wait, and remove them.
    modules = [(file, Path(file).read_bytes()) for file in request.files]
    failed = [f"no engine is compiled: {lacking}" for lacking in fence.lacking()]
    folder = users_folder()
    for file, wasm in modules if not failed else []:
        try:
            image = compiled_code.image_of(folder, wasm)
            if image is not None:
                compiled_code.engine(folder, wasm, image)
        except (NotCompiled, OSError) as error:
            failed.append(f"{file}: {error}")
    if folder.exists():
        compiled_code.trim(folder, KEPT_BYTES)
    return orjson.dumps({"ok": True, "failed": failed})
