"""The repeater: a process that repeats one call that trapped, on the interpreter, and exits.

The interpreter says where a guest traps; compiled code doesn't. The function has no grants, so the call can change
nothing outside this process.
"""

import resource
import socket
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.aot_cache import Damaged
from edge_runtime.children.worker_services import Denials
from edge_runtime.guests import guest, invocation, trap_places
from edge_runtime.ipc import frames, request_head
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence
from edge_runtime.wasmedge import WasmEdgeError

DATA_BYTES: Final = 3 * 1024**3
"""Bytes of memory that the process may take: a guest's two memories, 1 GiB each, and the rest."""

_decode: Final = msgspec.json.Decoder(frames.Repeat).decode


def serve(sock: socket.socket, _page: memoryview, _slot: int, _settings: frames.ChildSettings) -> None:
    """Answer one REPEAT, and return."""
    written = trap_places.divert()
    fence.lower_limit(resource.RLIMIT_DATA, DATA_BYTES)
    fence.seal("repeater")
    frame = FrameReader(sock).next()
    if frame is not None:
        place = _place(_decode(frame.body), written)[: frames.TRAP_PLACE]
        frames.send_json(sock, 0, frames.REPEATED, frames.Repeated(place))


def _place(order: frames.Repeat, written: int) -> str:
    """Make the call; return the function of its module in which it trapped, empty if it didn't."""
    local = msgspec.structs.replace(order.function, aot="")
    denials = Denials()
    try:
        function = guest.LoadedFunction.load(local, order.secrets)
        request = invocation.request_of(request_head.decode_head(order.head), local.manifest.abi, order.body)
        function.call(request, guest.CallServices(denials.sql, denials.http))
    except guest.GuestFault as fault:
        if fault.code == "guest_trap":
            return trap_places.place(written, Path(local.wasm).read_bytes(), local.manifest.abi)
    except (Damaged, WasmEdgeError, OSError):
        # The worker that loads the function for calls reports this.
        pass
    return ""
