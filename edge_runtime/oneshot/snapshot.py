"""`python -m edge_runtime.oneshot.snapshot`: makes a module's snapshot, for the build of a function.

It reads a `SnapshotOrder` (JSON) on stdin, writes the snapshot to a file, and prints a `SnapshotDone` (JSON); it exits
with status 0 also if there is none. (`control.cli.project.snapshots` is the caller's side.)

The module's initialiser runs in a forked child behind the fence of a worker, in an empty environment: there are no
arguments, variables, files, SQL or HTTP, its stdin is what the order says, and it is always 1970. What each call must
get anew can't be kept in a snapshot: random numbers, variables and arguments. So an initialiser that asks for them is
refused, unless the order names a `renew`: an export that gets them anew, and that each instance calls first. For such
an initialiser, random numbers are the same in each build. The same order so gives the same snapshot.

No secret, and nothing that only this machine has, may be in the snapshot's memory (`leaks`).
"""

import hashlib
import os
import signal
import socket
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec
import orjson
from msgspec import Struct

from edge_runtime.aot_cache import QUICK, AotFile, users_folder
from edge_runtime.guests.abi import snapshot as snapshots
from edge_runtime.guests.abi.imports import OWN_SIGNATURES, SKERRY, WASI
from edge_runtime.guests.abi.snapshot import INITIALIZE, Prepared, SnapshotRefused
from edge_runtime.guests.wasi import FAULT, SUCCESS, Exit, Strings, Wasi
from edge_runtime.oneshot.compiled_code import NotCompiled, compiled
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.oneshot.leaks import Guarded, guarded, leaked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import READ
from edge_runtime.wasmedge import (
    PAGE,
    Config,
    EntryPoint,
    HostFunction,
    HostModule,
    Memory,
    Module,
    Program,
    WasmEdgeError,
    check_address_space,
    check_refusals,
)
from edge_runtime.wasmedge.memory_imports import import_memories

LIMIT: Final = 120.0
"""Seconds that an initialiser may take."""
LOG_BYTES: Final = 1 << 16
"""Bytes of an initialiser's output that are kept."""
_REALTIME: Final = 0


class SnapshotOrder(Struct):
    """What to make: of the module in a file the snapshot in another, or in the same."""

    module: str
    out: str
    init: str = ""
    """The export that initialises it; '' if nothing does: then only its data segments are joined."""
    renew: str = ""
    """The export that each instance calls first; '' for none."""
    stdin: bytes = b""
    memory_pages: int = 1024
    compiled: bool = False
    """Whether it runs as machine code, which is kept in the user's cache: for an engine that many functions share. A
    module that is new in each build runs sooner on the interpreter."""
    secrets: dict[str, str] = {}
    """The function's, by name."""
    project: str = ""
    """The path of its project's folder."""
    allow: list[str] = []
    """Names of secrets and variables whose values may be in the snapshot."""
    limit: float = LIMIT
    """Seconds that the initialiser may take."""


class SnapshotDone(Struct):
    """What came of an order."""

    log: str = ""
    """What the initialiser wrote to stdout and stderr."""
    message: str = ""
    """Why there is no snapshot; '' if there is one."""


class MadeSnapshot(Struct):
    """What the child answers."""

    done: SnapshotDone
    wasm: bytes = b""


class BuildWasi(Wasi):
    """WASI for an initialiser: always at the same time, and without what a snapshot must not keep."""

    def __init__(self, memory: Memory, order: SnapshotOrder, seed: bytes) -> None:
        super().__init__(memory)
        self._order = order
        self._seed = seed
        self._readings = 0
        self._drawn = 0
        self.begin(Strings(()), Strings(()), order.stdin, None, LOG_BYTES)

    def _now(self, clock: int) -> int:
        # Others than the time of day must not stand still, or be 0: Go's runtime ends then. A call's begin at 1, too.
        self._readings += 1
        return 0 if clock == _REALTIME else self._readings

    def random_get(self, start: int, length: int) -> int:
        self._renewed("drew random numbers", "random_get")
        if length:
            self._memory.need(start + length)
            self._drawn += 1
            stream = hashlib.shake_256(self._seed + self._drawn.to_bytes(8, "little"))
            self._memory.write(start, stream.digest(length))
        return SUCCESS

    def environ_sizes_get(self, count: int, size: int) -> int:
        self._renewed("read variables of the environment", "environ_sizes_get")
        return super().environ_sizes_get(count, size)

    def args_sizes_get(self, count: int, size: int) -> int:
        self._renewed("read its arguments", "args_sizes_get")
        return super().args_sizes_get(count, size)

    def poll_oneoff(self, subscriptions: int, events: int, count: int, result: int) -> int:
        raise SnapshotRefused(f"Its {self._order.init} waits (poll_oneoff), and no time passes while it runs.")

    def _renewed(self, did: str, function: str) -> None:
        """Raises: SnapshotRefused, when nothing gets anew what the initialiser asks for."""
        if not self._order.renew:
            raise SnapshotRefused(
                f"Its {self._order.init} {did} ({function}), and every call would have the same: leave that to the "
                "calls, or name as `renew` an export that does it anew."
            )


def make(wasm: bytes, order: SnapshotOrder, aot: AotFile | None, values: Collection[Guarded]) -> MadeSnapshot:
    """Initialise a module in this process, which is fenced, and return its snapshot. `aot` is the prepared module's
    machine code; None to interpret it. None of `values` may be in the snapshot's memory."""
    memory = Memory()
    wasi = BuildWasi(memory, order, hashlib.sha256(wasm + order.stdin).digest())
    made, message = b"", ""
    try:
        content, numbers = _initialised(snapshots.prepare(wasm, order.init, order.renew), order, aot, wasi, memory)
        if found := leaked(b"\0".join(data for _, data in snapshots.segments(content)), values):
            raise SnapshotRefused(
                f"Its memory has {found.what} in it, which everybody would get who gets the module: keep it out of "
                "what the build reads (compilers have options that shorten paths, and a function's secrets come with "
                f"each call), or, if it is no secret, allow it: snapshot.allow = [{orjson.dumps(found.name).decode()}]."
            )
        made = snapshots.snapshot(wasm, order.init, content, numbers, order.renew)
    except SnapshotRefused as refused:
        message = str(refused)
    except Exit as ended:
        message = f"Its {order.init} ended the program, with the exit code {ended.code}."
    except WasmEdgeError as error:
        message = f"Its {order.init} failed: {error}."
    return MadeSnapshot(SnapshotDone(wasi.stderr.decode(errors="replace"), message), made)


def _initialised(
    prepared: Prepared, order: SnapshotOrder, aot: AotFile | None, wasi: Wasi, memory: Memory
) -> tuple[bytes, list[int]]:
    """Run the initialiser; return the memory's content, and the values of the mutable globals."""
    initialiser = EntryPoint(order.init)
    getters = [EntryPoint(name, ("", result)) for name, result in prepared.getters]
    own = {name: (signature, _refused(order.init, name)) for name, signature in OWN_SIGNATURES.items()}
    imports = [HostModule(WASI, wasi.functions(), out_of_bounds=FAULT), HostModule(SKERRY, own)]
    config = Config(memory_pages=order.memory_pages)
    if aot is None:
        module = Module.from_bytes(import_memories(prepared.wasm), config)
    else:
        module = Module.from_file(aot.path, config)
    program = Program(module, config, imports, [initialiser, *getters])
    with program.open(memory):
        # `open` has called the other one.
        if order.init != INITIALIZE:
            program.call(initialiser)
        size = memory.pages() * PAGE
        memory.need(size)
        return memory.read(0, size), [program.call(getter) for getter in getters]


def _refused(initialiser: str, name: str) -> HostFunction:
    def refuse(*_: int) -> int:
        raise SnapshotRefused(
            f"Its {initialiser} called {SKERRY}.{name}, and only a call may: it runs once, when the function is built."
        )

    return refuse


def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=SnapshotOrder)
    made = carried_out(Path(order.module).read_bytes(), order)
    if made.wasm:
        out = Path(order.out)
        # A reader never sees half of it.
        partial = out.with_name(f"{out.name}.{os.getpid()}")
        partial.write_bytes(made.wasm)
        partial.replace(out)
    sys.stdout.buffer.write(msgspec.json.encode(made.done) + b"\n")
    return 0


def carried_out(wasm: bytes, order: SnapshotOrder) -> MadeSnapshot:
    """Have a child make what the order asks for."""
    if not order.init:
        return MadeSnapshot(SnapshotDone(), snapshots.join_segments(wasm))
    values = list(guarded(os.environ, order.secrets, order.project, socket.gethostname(), order.allow))
    check_address_space()
    check_refusals()
    aot = None
    if order.compiled:
        try:
            aot = compiled(snapshots.prepare(wasm, order.init, order.renew).wasm, users_folder(), QUICK)
        except (SnapshotRefused, NotCompiled) as refused:
            return MadeSnapshot(SnapshotDone(message=str(refused)))

    def work() -> bytes:
        fence.enclose([] if aot is None else [(aot.path, READ)])
        fence.seal("worker")
        return msgspec.msgpack.encode(make(wasm, order, aot, values))

    try:
        answer, status = run_forked(work, order.limit)
    except TimeoutError:
        return MadeSnapshot(SnapshotDone(message=f"Its {order.init} has not ended after {order.limit:g} s."))
    if not answer:
        ended = f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "no answer"
        return MadeSnapshot(SnapshotDone(message=f"The process that ran its {order.init} ended with {ended}."))
    return msgspec.msgpack.decode(answer, type=MadeSnapshot)


if __name__ == "__main__":
    sys.exit(main())
