"""Machine code of a module for a process of its own: from the user's cache, or made by a fenced child."""

import hashlib
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Final

from edge_runtime.aot_cache import AotFile, find, install, make_work_folder, put_on_disk
from edge_runtime.children.compile_child import DATA_BYTES
from edge_runtime.guests.function_code import compile_artifact
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import PROCESSOR, REBUILD
from edge_runtime.wasmedge import WasmEdgeError

LIMIT: Final = 600.0
"""Seconds that a compilation may take."""
_OK: Final = b"ok"


class NotCompiled(Exception):
    """There is no machine code; the message says why."""


def compiled(wasm: bytes, folder: Path, level: int) -> AotFile:
    """Return the AOT file of a module at an optimization level: the one in `folder`, or a new one.

    Raises: NotCompiled, when it can't be compiled; OSError, when a file can't be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sha256 = hashlib.sha256(wasm).hexdigest()
    known = find(folder, sha256, level)
    if known is not None:
        return known
    work = make_work_folder(folder)

    def compile_it() -> bytes:
        fence.lower_limit(resource.RLIMIT_DATA, DATA_BYTES)
        fence.enclose([(work, REBUILD), PROCESSOR])
        fence.seal("compiler")
        try:
            compile_artifact(wasm, work, level)
        except (WasmEdgeError, OSError) as error:
            return str(error).encode()
        return _OK

    try:
        answer, status = run_forked(compile_it, LIMIT)
        if answer != _OK:
            ended = f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "no answer"
            raise NotCompiled(f"It can't be compiled: {answer.decode(errors='replace') or f'the compiler: {ended}'}.")
        install(work, folder, sha256, level)
        put_on_disk(folder, sha256, level)
    except TimeoutError:
        raise NotCompiled(f"It was not compiled after {LIMIT:.0f} s.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    made = find(folder, sha256, level)
    if made is None:
        raise NotCompiled("The compiler left no usable AOT file.")
    return made
