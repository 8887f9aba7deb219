"""The compiler: a process that does one thing with code and exits, since hostile code may cost much time and memory.

It compiles an artifact, splits one into its engine and its memory's image, or checks files by their sha256.
"""

import hashlib
import resource
import socket
import sys
from pathlib import Path
from typing import Final

import msgspec

from control.protocol import faults
from edge_runtime import process_memory
from edge_runtime.aot_cache import AotFile, Damaged, verify
from edge_runtime.guests.function_code import compile_artifact, split_artifact
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import PROCESSOR, REBUILD
from edge_runtime.wasmedge.errors import WasmEdgeError

DATA_BYTES: Final = 4 * 1024**3
"""Bytes of memory that a compilation may take: 3 MB of Go take 0.6 GB. With more, a signal kills the compiler."""

HEAP_BYTES: Final = 8 * 1024**2
"""Bytes of memory that each compilation takes: 28 KB of C took 6 MiB."""


class Lost(Exception):
    """The artifact's file is missing, or has other content now."""


def serve(sock: socket.socket, _page: memoryview, _slot: int, _settings: frames.ChildSettings) -> None:
    """Answer one COMPILE, SPLIT or VERIFY, and return."""
    fence.lower_limit(resource.RLIMIT_DATA, DATA_BYTES)
    fence.seal("compiler")
    frame = FrameReader(sock).next()
    if frame is None:
        return
    match frame.kind:
        case frames.COMPILE:
            _compile(sock, msgspec.json.decode(frame.body, type=frames.Compile))
        case frames.SPLIT:
            _split(sock, msgspec.json.decode(frame.body, type=frames.SplitOrder))
        case frames.VERIFY:
            _verify(sock, msgspec.json.decode(frame.body, type=frames.Verify))
        case _:
            raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no compiler knows")


def _compile(sock: socket.socket, order: frames.Compile) -> None:
    told = False

    def made(aot: AotFile) -> None:
        nonlocal told
        faults.reach("edge.compile.after")
        told = True
        frames.send_json(sock, 0, frames.COMPILED, frames.Compiled(aot.digest))

    failure = None
    try:
        wasm = _begin(order)
        faults.reach("edge.compile.before")
        process_memory.fill_heap(HEAP_BYTES)
        compile_artifact(wasm, Path(order.folder), order.level, made)
    except (Lost, WasmEdgeError, OSError) as error:
        failure = _failure(error)
    if failure is not None and told:
        # The front already has its answer and its file.
        print(f"a compiler failed once its code was linked: {failure.message}", file=sys.stderr, flush=True)
    elif failure is not None:
        frames.send_json(sock, 0, frames.FAILED, failure)


def _split(sock: socket.socket, order: frames.SplitOrder) -> None:
    try:
        made = split_artifact(_begin(order), Path(order.folder))
    except (Lost, WasmEdgeError, OSError) as error:
        frames.send_json(sock, 0, frames.FAILED, _failure(error))
    else:
        frames.send_json(sock, 0, frames.SPLIT_UP, frames.SplitUp() if made is None else frames.SplitUp(*made))


def _begin(order: frames.Compile | frames.SplitOrder) -> bytes:
    """Make the child's own folder, and return the artifact. Raises: Lost; OSError."""
    wasm = _read(order)
    Path(order.folder).mkdir(0o700)
    # Before the wasm is parsed, so that it can't touch the AOT files of others.
    fence.narrow([(Path(order.folder), REBUILD), PROCESSOR])
    return wasm


def _failure(error: Exception) -> frames.ChildFailure:
    code = "artifact_lost" if isinstance(error, Lost) else "compile_io" if isinstance(error, OSError) else ""
    return frames.ChildFailure(code or "compile_failed", str(error))


def _read(order: frames.Compile | frames.SplitOrder) -> bytes:
    """Return the artifact's bytes. Raises: Lost, when they can't be read or have another sha256."""
    try:
        wasm = Path(order.artifact).read_bytes()
    except OSError as error:
        raise Lost(f"{order.artifact} can't be read: {error}") from None
    digest = hashlib.sha256(wasm).hexdigest()
    if digest != order.sha256:
        raise Lost(f"{order.artifact} has the sha256 {digest}: it is damaged")
    return wasm


def _verify(sock: socket.socket, order: frames.Verify) -> None:
    """Check files, and tell which are missing or damaged."""
    damaged = []
    for path, digest in order.files:
        try:
            verify(Path(path), digest)
        except (Damaged, OSError):
            damaged.append(path)
    frames.send_json(sock, 0, frames.VERIFIED, frames.Verified(damaged))
