"""`python -m edge_runtime.oneshot.single_call`: one call of one module, without a server, in a process of its own
behind the fence of a worker: a guest can crash it, hang it, or break out of the sandbox. For `skerry-edge call`.

Reads a `SingleCallRequest` (JSON) on stdin. Prints the line `{"running": true}` when the guest begins, then the
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

from control import wire
from edge_runtime.aot_cache import QUICK, AotFile, find, install, make_work_folder
from edge_runtime.children.compile_child import DATA_BYTES
from edge_runtime.children.warmup import rehearse
from edge_runtime.errors import status_of
from edge_runtime.guests import guest
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.function_code import compile_artifact
from edge_runtime.guests.invocation import SingleCallResult
from edge_runtime.ipc import frames
from edge_runtime.oneshot import scratch_database
from edge_runtime.oneshot.check import check_module
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.profiles import PROCESSOR, RANDOM, READ, REBUILD, WRITE
from edge_runtime.sql.call_sql import ProbeSql
from edge_runtime.sql.database import Database
from edge_runtime.sql.session import Session
from edge_runtime.wasmedge import WasmEdgeError

NO_HTTP: Final = b'{"error":{"code":"http_failed","message":"`skerry-edge call` makes no requests; `skerry dev` does"}}'
RUNNING: Final = b'{"running":true}\n'
LIMIT: Final = 3600.0
"""Seconds for the compiler; whoever asked has less patience, and ends this process with it."""


class SingleCallRequest(Struct):
    file: str
    manifest: wire.Manifest
    request: guest.Request
    cache: str
    """The folder of AOT files; empty: the module runs on the interpreter."""
    database: str = ""
    """Path of the libsql file that SQL goes to."""
    secrets: dict[str, str] = {}
    fence: str = "required"
    """Whether there must be every piece of the fence, or only what the machine has: required or partial."""


class NoHttp:
    def fetch(self, request: bytes) -> bytes:
        return NO_HTTP


def main() -> int:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=SingleCallRequest)
    try:
        told = run(asked)
    except ModuleRefused as refused:
        told = SingleCallResult(0, code=refused.code, message=str(refused))
    except (WasmEdgeError, OSError) as error:
        told = SingleCallResult(0, code="function_unloadable", message=f"{asked.file} can't be loaded: {error}.")
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    return 0


def run(asked: SingleCallRequest) -> SingleCallResult:
    """Make the call: what is loaded is parsed behind the fence alone. Errors: ModuleRefused, WasmEdgeError, OSError."""
    _look_at_fence(asked)
    guest.prepare()
    rehearse()
    path = Path(asked.file).absolute()
    wasm = path.read_bytes()
    aot = _compiled(asked, wasm) if asked.cache else None
    files = [(path if aot is None else aot.path, READ), RANDOM]
    if asked.database:
        files += [(file, WRITE) for file in scratch_database.prepare(Path(asked.database))]
    fence.enclose(files)
    http = NoHttp() if asked.manifest.http is not None else None
    with _opened(asked) as opened:
        function = guest.Function.load(_local(asked, path, wasm, aot), asked.secrets)
        sql = None if opened is None else ProbeSql(Session(opened), asked.manifest.sql, 0)
        sys.stdout.buffer.write(RUNNING)
        sys.stdout.buffer.flush()
        began = time.monotonic()
        try:
            answer = function.call(asked.request, guest.Services(sql, http))
        except guest.GuestFault as fault:
            code = (sql.limit_code if sql is not None else "") or fault.code
            return SingleCallResult(
                status_of(code), log=fault.log, code=code, message=str(fault), seconds=time.monotonic() - began
            )
        if opened is not None and opened.in_transaction and answer.status < 500:
            opened.rows("COMMIT")
        return SingleCallResult(answer.status, answer.head, answer.body, answer.log, time.monotonic() - began)


def _look_at_fence(asked: SingleCallRequest) -> None:
    lacking = ". ".join(fence.lacking())
    if lacking and asked.fence == "required":
        raise ModuleRefused(
            "fence_lacking",
            f"This machine can't fence in what runs a function. {lacking}. To run it all the same, with what there is "
            "of the fence, give --fence partial.",
        )
    if lacking:
        sys.stderr.write(f"Warning: the function runs without a part of its fence: {lacking}\n")


@contextmanager
def _opened(asked: SingleCallRequest) -> Iterator[Database | None]:
    """The database, where there is one; sealed. Error: OSError."""
    if asked.database:
        with scratch_database.open_sealed(Path(asked.database), asked.manifest.sql) as opened:
            yield opened
    else:
        fence.seal("worker")
        yield None


def _local(asked: SingleCallRequest, path: Path, wasm: bytes, aot: AotFile | None) -> frames.LocalFunction:
    """Errors: ModuleRefused."""
    manifest = _checked(asked, wasm)
    sha256 = hashlib.sha256(wasm).hexdigest()
    local = frames.LocalFunction(path.stem, 1, sha256, manifest, wire.manifest_digest(manifest), wasm=str(path))
    return local if aot is None else msgspec.structs.replace(local, aot=str(aot.path), aot_digest=aot.digest)


def _checked(asked: SingleCallRequest, wasm: bytes) -> wire.Manifest:
    """The manifest, with the ABI that the module speaks. Error: ModuleRefused."""
    found = check_module(wasm, pages_limit=asked.manifest.memory_pages)
    if asked.manifest.abi not in ("", found["abi"]):
        raise ModuleRefused(
            "module_refused", f"The module speaks {found['abi']}, the manifest says {asked.manifest.abi}."
        )
    return msgspec.structs.replace(asked.manifest, abi=found["abi"])


def _compiled(asked: SingleCallRequest, wasm: bytes) -> AotFile:
    """What was compiled before, or is by a fenced child now, which can write nothing but that. Errors: ModuleRefused,
    OSError."""
    folder = Path(asked.cache)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sha256 = hashlib.sha256(wasm).hexdigest()
    found = find(folder, sha256, QUICK)
    if found is not None:
        return found
    work = make_work_folder(folder)
    try:
        answer, status = run_forked(lambda: _compile(asked, wasm, work), LIMIT)
        # Nothing is kept of one that was ended.
        told = (
            msgspec.json.decode(answer, type=SingleCallResult)
            if answer
            else SingleCallResult(0, code="compile_crashed")
        )
        if not told.code:
            install(work, folder, sha256, QUICK)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if os.WIFSIGNALED(status):
        # As if it had been this process.
        os.kill(os.getpid(), os.WTERMSIG(status))
    if told.code:
        raise ModuleRefused(told.code, told.message or "The compiler ended without an answer; it says why above.")
    found = find(folder, sha256, QUICK)
    if found is None:
        raise OSError("the compiler left nothing whole")
    return found


def _compile(asked: SingleCallRequest, wasm: bytes, work: Path) -> bytes:
    fence.lower(resource.RLIMIT_DATA, DATA_BYTES)
    fence.enclose([(work, REBUILD), PROCESSOR])
    fence.seal("compiler")
    told = SingleCallResult(200)
    try:
        _checked(asked, wasm)
        compile_artifact(wasm, work, QUICK)
    except ModuleRefused as refused:
        told = SingleCallResult(0, code=refused.code, message=str(refused))
    except (WasmEdgeError, OSError) as error:
        told = SingleCallResult(0, code="function_unloadable", message=f"{asked.file} can't be compiled: {error}.")
    return msgspec.json.encode(told)


if __name__ == "__main__":
    sys.exit(main())
