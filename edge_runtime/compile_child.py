"""A child that compiles one artifact ahead of time, and ends: hostile input costs the compiler much time and memory."""

import hashlib
import resource
import socket
from pathlib import Path
from typing import Final

import msgspec

from control import faults

from . import fence, frames
from .allowed import PROCESSOR, REBUILD
from .code import compile_artifact
from .wasmedge.errors import WasmEdgeError

DATA_BYTES: Final = 4 * 1024**3
"""Memory that a compilation may take: 3 MB of Go take 0.6 GB. An artifact that takes more ends its compiler by a
signal."""


class Lost(Exception):
    """The artifact's file isn't there, or isn't the artifact any more."""


def serve(sock: socket.socket, _page: memoryview, _slot: int, _settings: frames.ChildSettings) -> None:
    """Answer one COMPILE."""
    fence.lower(resource.RLIMIT_DATA, DATA_BYTES)
    fence.seal("compiler")
    frame = frames.Reader(sock).next()
    if frame is None:
        return
    asked = msgspec.json.decode(frame.body, type=frames.Compile)
    try:
        wasm = _read(asked)
        # Before it is parsed: what is compiled here can't touch what others were compiled to.
        fence.narrow([(Path(asked.folder), REBUILD), PROCESSOR])
        faults.reach("edge.compile.before")
        made = compile_artifact(wasm, Path(asked.folder), asked.level)
        faults.reach("edge.compile.after")
    except Lost as lost:
        frames.send_json(sock, 0, frames.FAILED, frames.Failure("artifact_lost", str(lost)))
    except WasmEdgeError as error:
        frames.send_json(sock, 0, frames.FAILED, frames.Failure("compile_failed", str(error)))
    except OSError as error:
        frames.send_json(sock, 0, frames.FAILED, frames.Failure("compile_io", str(error)))
    else:
        frames.send_json(sock, 0, frames.COMPILED, frames.Compiled(made.digest))


def _read(asked: frames.Compile) -> bytes:
    """Error: Lost."""
    try:
        wasm = Path(asked.artifact).read_bytes()
    except OSError as error:
        raise Lost(f"{asked.artifact} can't be read: {error}") from None
    found = hashlib.sha256(wasm).hexdigest()
    if found != asked.sha256:
        raise Lost(f"{asked.artifact} has the sha256 {found}: it is damaged")
    return wasm
