"""One call of a module behind the fence of a worker, without a node. `python -m edge_runtime.oneshot.single_call` makes
one for `skerry-edge call`; `fresh_calls` makes many. It runs in a separate process, because a guest can crash it, hang
it, or break out of its sandbox.

The code that the call runs is prepared before the fence (`make_ready`), what can't be opened behind the fence is opened
before it is complete (`before_seal`), and the guest runs behind it (`call`).

The program reads a `SingleCallRequest` (JSON) on stdin. It prints the line `{"running": true}` when the guest starts,
then the `SingleCallResult` in one line.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec
import orjson

from control.protocol.manifest import Manifest, manifest_digest
from edge_runtime.aot_cache import AotFile
from edge_runtime.children.probe_call import ProbeSql
from edge_runtime.children.warmup import rehearse
from edge_runtime.errors import status_of
from edge_runtime.guests import guest, trap_places
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.host_functions import host as guest_host
from edge_runtime.guests.host_functions import not_granted
from edge_runtime.guests.invocation import SingleCallResult
from edge_runtime.ipc import frames, http_messages
from edge_runtime.ipc.answer_head import fields
from edge_runtime.ipc.local_code import with_code
from edge_runtime.ipc.progress_page import LogPage, open_slot
from edge_runtime.oneshot import compiled_code, scratch_database
from edge_runtime.oneshot.call_messages import SingleCallRequest
from edge_runtime.oneshot.check import check_module
from edge_runtime.oneshot.compiled_code import NotCompiled, files_of
from edge_runtime.oneshot.given_answers import NONE, GivenAnswers
from edge_runtime.oneshot.scratch_database import DatabaseUnusable
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import WRITE
from edge_runtime.sql.call_sql import CallSql, CommitFailed, SqlLimits
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.session import Session
from edge_runtime.wasmedge import WasmEdgeError

RUNNING: Final = b'{"running":true}\n'
NO_DATABASE: Final = orjson.dumps(
    {"error": {"code": "database_not_given", "message": "The call has no database: name one with --sql FILE."}}
)
NOTES: Final = 20
"""Errors of SQL and HTTP that are reported with a call."""


class CallCode(NamedTuple):
    """A module and its compiled code; `aot` is None if it is interpreted."""

    wasm: bytes
    sha256: str
    aot: AotFile | None


class _Service(Protocol):
    """`execute` of SQL, or `fetch` of HTTP: JSON in, JSON out."""

    def __call__(self, request: bytes) -> bytes: ...


class _NotedService:
    """A service that the call may use, or the reason why it may not; errors are noted, since the function may hide
    them."""

    def __init__(self, what: str, service: _Service, notes: list[str]) -> None:
        self._what = what
        self._service = service
        self._notes = notes

    def execute(self, request: bytes) -> bytes:
        answer = self._service(request)
        if answer.startswith(b'{"error"') and len(self._notes) < NOTES:
            error = orjson.loads(answer)["error"]
            note = f"{self._what}: {error['message']} ({error['code']})"
            if note not in self._notes:
                self._notes.append(note)
        return answer

    fetch = execute


class KeptSql(ProbeSql):
    """SQL in a transaction that the caller begins, like a probe's, except that its writes may be kept."""

    commit = CallSql.commit


def make_ready(request: SingleCallRequest) -> CallCode:
    """Return the call's code: a cached AOT file or a new one, unless the module is to be interpreted.

    Raises: ModuleRefused, when no node can run the module; OSError, when a file can't be used.
    """
    wasm = request.path.read_bytes()
    aot = _compiled(request, wasm) if request.cache else None
    return CallCode(wasm, hashlib.sha256(wasm).hexdigest(), aot)


def look_at_fence(wanted: str) -> None:
    """Check that the machine has all parts of the fence; if `wanted` is `partial`, warn only.

    Raises: ModuleRefused, when a part is missing and `wanted` is `required`.
    """
    lacking = ". ".join(fence.lacking())
    if lacking and wanted == "required":
        raise ModuleRefused(
            "fence_lacking",
            f"This machine can't fence in what runs a function. {lacking}. To run it all the same, with what there is "
            "of the fence, give --fence partial.",
        )
    if lacking:
        sys.stderr.write(f"Warning: the function runs without a part of its fence: {lacking}\n")


def checked(request: SingleCallRequest, wasm: bytes) -> Manifest:
    """Return the manifest with the module's ABI in it. Call it behind a fence: it parses the module.

    Raises: ModuleRefused, when no node can run the module, or its ABI isn't the manifest's.
    """
    found = check_module(wasm, pages_limit=request.manifest.memory_pages)
    if request.manifest.abi not in ("", found["abi"]):
        raise ModuleRefused(
            "module_refused", f"The module speaks {found['abi']}, the manifest says {request.manifest.abi}."
        )
    return msgspec.structs.replace(request.manifest, abi=found["abi"])


def before_seal(request: SingleCallRequest) -> int:
    """Open the memory for the call's log; return the descriptor of what WasmEdge logs about a trap, -1 if that isn't
    kept."""
    if request.log >= 0:
        guest_host().wasi.copy = LogPage(open_slot(request.log, 0), 0)
    return trap_places.divert() if request.places else -1


def call(
    request: SingleCallRequest,
    manifest: Manifest,
    code: CallCode,
    opened: LibsqlDatabase | None,
    written: int,
    begins: Callable[[], None],
) -> SingleCallResult:
    """Make the call in its database's open transaction, and commit that as a node would. The process is sealed.
    `manifest` is what `checked` returned, `written` what `before_seal` returned; `begins` is called when the guest
    starts.

    Raises: WasmEdgeError, when WasmEdge can't load the module; OSError, when a file can't be used.
    """
    name = request.name or request.path.stem
    local = frames.LocalFunction(name, 1, code.sha256, manifest, manifest_digest(manifest))
    function = guest.LoadedFunction.load(with_code(local, code.aot or request.path), request.secrets)
    notes: list[str] = []
    sql = None if opened is None else _sql(request, opened)
    grant = request.manifest.http
    answers = None if grant is None else GivenAnswers(grant, request.http)
    services = guest.CallServices(
        _NotedService("SQL", _no_sql(request) if sql is None else sql.execute, notes),
        _NotedService("HTTP", _no_http(request) if answers is None else answers.fetch, notes),
    )
    begins()
    began = time.monotonic()
    try:
        answer = function.call(request.request, services)
        if sql is not None and answer.status < 500:
            sql.commit()
    except CommitFailed as failed:
        log = guest_host().wasi.stderr
        return _failed(failed.code, failed.message, log, time.monotonic() - began, notes)
    except guest.GuestFault as fault:
        code_ = (sql.limit_code if sql is not None else "") or fault.code
        result = _failed(code_, str(fault), fault.log, time.monotonic() - began, notes)
        result.snapshot = code.aot is not None and code.aot.image is not None
        if written >= 0 and fault.code == "guest_trap":
            result.place = trap_places.place(written, code.wasm, manifest.abi)
        return result
    seconds = time.monotonic() - began
    unasked = [] if answers is None else answers.left()
    head = fields(answer.head)
    return SingleCallResult(answer.status, head, answer.body, answer.log, seconds, notes=notes, unasked=unasked)


def _failed(code: str, message: str, log: bytes, seconds: float, notes: list[str]) -> SingleCallResult:
    return SingleCallResult(status_of(code), log=log, code=code, message=message, seconds=seconds, notes=notes)


def _sql(request: SingleCallRequest, opened: LibsqlDatabase) -> KeptSql:
    manifest, grant = request.manifest, request.grant
    limits = SqlLimits(answer_bytes=manifest.sql_bytes, rows=manifest.sql_rows)
    read_only = "" if grant == manifest.sql else request.request.method
    return KeptSql(Session(opened), grant, 0, limits=limits, method=read_only)


def _no_sql(request: SingleCallRequest) -> _Service:
    """Return the SQL service of a call without a database."""
    granted = request.manifest.sql != "none" or not request.manifest_given
    return lambda _: NO_DATABASE if granted else not_granted("SQL", "`sql` to read or write")


def _no_http(request: SingleCallRequest) -> _Service:
    """Return the HTTP service of a call whose manifest grants it none."""
    refused = not_granted("HTTP", "`http`, with the hosts")
    return lambda _: refused if request.manifest_given else http_messages.refused("http_failed", NONE)


def _compiled(request: SingleCallRequest, wasm: bytes) -> AotFile:
    """Return the AOT file: the cached one, or a new one.

    Raises: ModuleRefused, when the module can't be compiled; OSError, when a file can't be written.
    """
    try:
        return compiled_code.ready(Path(request.cache), wasm, lambda: checked(request, wasm))
    except NotCompiled as failed:
        if failed.number:
            # Exit the way the compiler did.
            os.kill(os.getpid(), failed.number)
        message = str(failed)
        if failed.code == "function_unloadable":
            message = message.replace("It ", f"{request.file} ", 1)
        raise ModuleRefused(failed.code, message) from None


def main() -> int:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=SingleCallRequest)
    if request.parent:
        fence.die_with_parent(request.parent)
    # When looking for a trap's place, WasmEdge owns stdout.
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
    """Make the call. The module is parsed and loaded only behind the fence. `out`: the descriptor to which the guest's
    start is reported.

    Raises: ModuleRefused, when no node can run the module or a part of the fence is missing; DatabaseUnusable;
    WasmEdgeError, when WasmEdge can't load it; OSError, when a file can't be used.
    """
    look_at_fence(request.fence)
    guest.prepare()
    rehearse()
    code = make_ready(request)
    files = files_of(code.aot or request.path)
    if request.database:
        files += [(file, WRITE) for file in scratch_database.prepare(Path(request.database))]
    fence.enclose(files)
    written = before_seal(request)
    with _opened(request) as opened:
        manifest = checked(request, code.wasm)
        return call(request, manifest, code, opened, written, lambda: _answer(out, RUNNING))


@contextmanager
def _opened(request: SingleCallRequest) -> Iterator[LibsqlDatabase | None]:
    """Seal the process, and open the database if there is one. Raises: DatabaseUnusable."""
    if request.database:
        with scratch_database.open_sealed(Path(request.database), request.grant) as opened:
            yield opened
    else:
        fence.seal("worker")
        yield None


if __name__ == "__main__":
    sys.exit(main())
