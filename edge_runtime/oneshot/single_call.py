"""`python -m edge_runtime.oneshot.single_call`: one call of one module without a server, for `skerry-edge call`. It is
a process of its own behind the fence of a worker, because a guest can crash it, hang it, or break out of its sandbox.

It reads a `SingleCallRequest` (JSON) on stdin, and prints the line `{"running": true}` when the guest begins, then the
`SingleCallResult` in one line.
"""

import hashlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from control.manifest_fields import Manifest, SqlGrant, manifest_digest, sql_grant
from edge_runtime.aot_cache import QUICK, AotFile, find, install, make_work_folder
from edge_runtime.children.compile_child import DATA_BYTES
from edge_runtime.children.probe_sql import ProbeSql
from edge_runtime.children.warmup import rehearse
from edge_runtime.errors import status_of
from edge_runtime.guests import guest, trap_log
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.function_code import compile_artifact
from edge_runtime.guests.host_functions import host as guest_host
from edge_runtime.guests.invocation import SingleCallResult
from edge_runtime.ipc import frames
from edge_runtime.ipc.progress_page import LogPage, open_slot
from edge_runtime.oneshot import scratch_database
from edge_runtime.oneshot.check import check_module
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import PROCESSOR, RANDOM, READ, REBUILD, WRITE
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.session import Session
from edge_runtime.wasmedge import WasmEdgeError

NO_HTTP: Final = b'{"error":{"code":"http_failed","message":"`skerry-edge call` makes no requests; `skerry dev` does"}}'
RUNNING: Final = b'{"running":true}\n'
LIMIT: Final = 3600.0
"""Seconds for the compiler. Whoever started this process has a shorter limit, and ends the compiler with it."""


class SingleCallRequest(Struct):
    file: str
    manifest: Manifest
    request: guest.Request
    cache: str
    """The folder of AOT files; empty where the module runs on the interpreter."""
    database: str = ""
    """Path of the libsql file for the call's SQL; empty where it has none."""
    secrets: dict[str, str] = {}
    parent: int = 0
    """Id of the process with whose end this one is ended; 0 where there is none."""
    log: int = -1
    """Descriptor of memory (`progress_page`) in which the call's log is kept should this process be ended; -1: none."""
    places: bool = False
    """Have a trap say in which function of the module it was; for the interpreter alone."""
    fence: str = "required"
    """`required`: every part of the fence must be there. `partial`: as much of it as this machine has."""


class NoHttp:
    def fetch(self, request: bytes) -> bytes:
        return NO_HTTP


def main() -> int:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=SingleCallRequest)
    if request.parent:
        fence.die_with_parent(request.parent)
    try:
        result = run(request)
    except ModuleRefused as refused:
        result = SingleCallResult(0, code=refused.code, message=str(refused))
    except (WasmEdgeError, OSError) as error:
        result = SingleCallResult(0, code="function_unloadable", message=f"{request.file} can't be loaded: {error}.")
    _answer(msgspec.json.encode(result) + b"\n")
    return 0


_out = 1
"""Descriptor of what this process prints."""


def _answer(line: bytes) -> None:
    while line:
        line = line[os.write(_out, line) :]


def _divert() -> int:
    """As `trap_log.divert`; what this process prints goes where it went before."""
    global _out
    _out = os.dup(1)
    return trap_log.divert()


def run(request: SingleCallRequest) -> SingleCallResult:
    """Make the call. The module is parsed and loaded behind the fence alone.

    Raises: ModuleRefused, when no node can run the module or the fence is lacking; WasmEdgeError, when WasmEdge can't
    load it; OSError, when a file can't be used.
    """
    _look_at_fence(request)
    guest.prepare()
    rehearse()
    path = Path(request.file).absolute()
    wasm = path.read_bytes()
    aot = _compiled(request, wasm) if request.cache else None
    files = [(path if aot is None else aot.path, READ), RANDOM]
    if request.database:
        files += [(file, WRITE) for file in scratch_database.prepare(Path(request.database))]
    fence.enclose(files)
    written = _divert() if request.places else -1
    if request.log >= 0:
        guest_host().wasi.copy = LogPage(open_slot(request.log, 0), 0)
    http = NoHttp() if request.manifest.http is not None else None
    with _opened(request) as opened:
        local = _local(request, path, wasm, aot)
        function = guest.LoadedFunction.load(local, request.secrets)
        sql = None
        if opened is not None:
            grant, method = _grant(request), request.request.method
            sql = ProbeSql(Session(opened), grant, 0, method="" if grant == request.manifest.sql else method)
        _answer(RUNNING)
        began = time.monotonic()
        try:
            answer = function.call(request.request, guest.CallServices(sql, http))
        except guest.GuestFault as fault:
            code = (sql.limit_code if sql is not None else "") or fault.code
            seconds, place = time.monotonic() - began, ""
            if written >= 0 and fault.code == "guest_trap":
                place = trap_log.place(written, wasm, local.manifest.abi)
            return SingleCallResult(
                status_of(code), log=fault.log, code=code, message=str(fault), seconds=seconds, place=place
            )
        if opened is not None and opened.in_transaction and answer.status < 500:
            opened.rows("COMMIT")
        return SingleCallResult(answer.status, answer.head, answer.body, answer.log, time.monotonic() - began)


def _look_at_fence(request: SingleCallRequest) -> None:
    lacking = ". ".join(fence.lacking())
    if lacking and request.fence == "required":
        raise ModuleRefused(
            "fence_lacking",
            f"This machine can't fence in what runs a function. {lacking}. To run it all the same, with what there is "
            "of the fence, give --fence partial.",
        )
    if lacking:
        sys.stderr.write(f"Warning: the function runs without a part of its fence: {lacking}\n")


def _grant(request: SingleCallRequest) -> SqlGrant:
    return sql_grant(request.manifest, request.request.method)


@contextmanager
def _opened(request: SingleCallRequest) -> Iterator[LibsqlDatabase | None]:
    """Seal the process, and open the database where there is one.

    Raises: OSError, when the database can't be opened.
    """
    if request.database:
        with scratch_database.open_sealed(Path(request.database), _grant(request)) as opened:
            yield opened
    else:
        fence.seal("worker")
        yield None


def _local(request: SingleCallRequest, path: Path, wasm: bytes, aot: AotFile | None) -> frames.LocalFunction:
    """Describe the module as the function that is to be loaded.

    Raises: ModuleRefused, as `_checked`.
    """
    manifest = _checked(request, wasm)
    sha256 = hashlib.sha256(wasm).hexdigest()
    local = frames.LocalFunction(path.stem, 1, sha256, manifest, manifest_digest(manifest), wasm=str(path))
    return local if aot is None else msgspec.structs.replace(local, aot=str(aot.path), aot_digest=aot.digest)


def _checked(request: SingleCallRequest, wasm: bytes) -> Manifest:
    """Return the manifest with the ABI of the module in it.

    Raises: ModuleRefused, when no node can run the module, or its ABI isn't the manifest's.
    """
    checked = check_module(wasm, pages_limit=request.manifest.memory_pages)
    if request.manifest.abi not in ("", checked["abi"]):
        raise ModuleRefused(
            "module_refused", f"The module speaks {checked['abi']}, the manifest says {request.manifest.abi}."
        )
    return msgspec.structs.replace(request.manifest, abi=checked["abi"])


def _compiled(request: SingleCallRequest, wasm: bytes) -> AotFile:
    """Return the AOT file: the cached one, or one that a fenced child compiles now, which can write nothing else.

    Raises: ModuleRefused, when the module can't be compiled; OSError, when a file can't be written.
    """
    folder = Path(request.cache)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sha256 = hashlib.sha256(wasm).hexdigest()
    aot = find(folder, sha256, QUICK)
    if aot is not None:
        return aot
    work_folder = make_work_folder(folder)
    try:
        answer, status = run_forked(lambda: _compile(request, wasm, work_folder), LIMIT)
        # A child that was ended leaves nothing in the cache.
        result = (
            msgspec.json.decode(answer, type=SingleCallResult)
            if answer
            else SingleCallResult(0, code="compile_crashed")
        )
        if not result.code:
            install(work_folder, folder, sha256, QUICK)
    finally:
        shutil.rmtree(work_folder, ignore_errors=True)
    if os.WIFSIGNALED(status):
        # End this process as the compiler ended.
        os.kill(os.getpid(), os.WTERMSIG(status))
    if result.code:
        raise ModuleRefused(result.code, result.message or "The compiler ended without an answer; it says why above.")
    aot = find(folder, sha256, QUICK)
    if aot is None:
        raise OSError("the compiler left no usable AOT file")
    return aot


def _compile(request: SingleCallRequest, wasm: bytes, work_folder: Path) -> bytes:
    fence.lower_limit(resource.RLIMIT_DATA, DATA_BYTES)
    fence.enclose([(work_folder, REBUILD), PROCESSOR])
    fence.seal("compiler")
    result = SingleCallResult(200)
    try:
        _checked(request, wasm)
        compile_artifact(wasm, work_folder, QUICK)
    except ModuleRefused as refused:
        result = SingleCallResult(0, code=refused.code, message=str(refused))
    except (WasmEdgeError, OSError) as error:
        result = SingleCallResult(0, code="function_unloadable", message=f"{request.file} can't be compiled: {error}.")
    return msgspec.json.encode(result)


if __name__ == "__main__":
    sys.exit(main())
