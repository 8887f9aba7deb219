"""`python -m edge_runtime.oneshot.single_call`: one call of one module without a server, for `skerry-edge call`. It is
a process of its own behind the fence of a worker, because a guest can crash it, hang it, or break out of its sandbox.

It reads a `SingleCallRequest` (JSON) on stdin, and prints the line `{"running": true}` when the guest begins, then the
`SingleCallResult` in one line.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.children.warmup import rehearse
from edge_runtime.guests import guest
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.invocation import SingleCallResult
from edge_runtime.oneshot import fenced_call, scratch_database
from edge_runtime.oneshot.call_messages import SingleCallRequest
from edge_runtime.oneshot.scratch_database import DatabaseUnusable
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, READ, WRITE
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.wasmedge import WasmEdgeError

RUNNING: Final = b'{"running":true}\n'


def main() -> int:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=SingleCallRequest)
    if request.parent:
        fence.die_with_parent(request.parent)
    # Where a trap is looked for, stdout is WasmEdge's.
    out = os.dup(1)
    try:
        result = run(request, out)
    except (ModuleRefused, DatabaseUnusable) as refused:
        result = SingleCallResult(0, code=refused.code, message=str(refused))
    except (WasmEdgeError, OSError) as error:
        result = SingleCallResult(0, code="function_unloadable", message=f"{request.file} can't be loaded: {error}.")
    _answer(out, msgspec.json.encode(result) + b"\n")
    return 0


def _answer(out: int, line: bytes) -> None:
    while line:
        line = line[os.write(out, line) :]


def run(request: SingleCallRequest, out: int) -> SingleCallResult:
    """Make the call. The module is parsed and loaded behind the fence alone. `out`: the descriptor that is told when
    the guest begins.

    Raises: ModuleRefused, when no node can run the module or the fence is lacking; DatabaseUnusable; WasmEdgeError,
    when WasmEdge can't load it; OSError, when a file can't be used.
    """
    fenced_call.look_at_fence(request.fence)
    guest.prepare()
    rehearse()
    code = fenced_call.make_ready(request)
    files = [(request.path if code.aot is None else code.aot.path, READ), RANDOM]
    if request.database:
        files += [(file, WRITE) for file in scratch_database.prepare(Path(request.database))]
    fence.enclose(files)
    written = fenced_call.before_seal(request)
    with _opened(request) as opened:
        manifest = fenced_call.checked(request, code.wasm)
        return fenced_call.call(request, manifest, code, opened, written, lambda: _answer(out, RUNNING))


@contextmanager
def _opened(request: SingleCallRequest) -> Iterator[LibsqlDatabase | None]:
    """Seal the process, and open the database where there is one. Raises: DatabaseUnusable."""
    if request.database:
        with scratch_database.open_sealed(Path(request.database), request.grant) as opened:
            yield opened
    else:
        fence.seal("worker")
        yield None


if __name__ == "__main__":
    sys.exit(main())
