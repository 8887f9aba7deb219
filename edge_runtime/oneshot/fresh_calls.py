"""`python -m edge_runtime.oneshot.fresh_calls`: calls of modules, each on a new database, for `skerry test`.

It reads `FreshCalls` (JSON) on stdin, and prints a `FreshCallDone` (JSON) per line as each call ends, in any order.
Each call runs in a fork, behind the fence of a worker, so a hundred of them take seconds.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from control.protocol.manifest import Manifest, completed
from edge_runtime.aot_cache import users_folder
from edge_runtime.children.warmup import rehearse
from edge_runtime.errors import CodedError
from edge_runtime.guests import guest
from edge_runtime.guests.abi.detect import ModuleRefused
from edge_runtime.guests.invocation import SingleCallResult
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.http_messages import NotFetched
from edge_runtime.ipc.request_head import RequestUnfit
from edge_runtime.oneshot import compiled_code, single_call
from edge_runtime.oneshot.call_messages import (
    FreshCall,
    FreshCallDone,
    FreshCalls,
    ProjectChange,
    SingleCallRequest,
    by_route,
    made_request,
)
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.oneshot.given_answers import GivenAnswers
from edge_runtime.oneshot.single_call import CallCode
from edge_runtime.oneshot.sql_command import shown_value
from edge_runtime.sandbox import fence
from edge_runtime.settings import processors
from edge_runtime.sql import run_change, schema_change
from edge_runtime.sql.access import AccessRules
from edge_runtime.sql.database import LibsqlDatabase, in_memory
from edge_runtime.sql.schema_change import SchemaChangeRefused
from edge_runtime.wasmedge import WasmEdgeError

CHECK_LIMIT: Final = 120.0
"""Seconds for checking a module."""
BEGIN_LIMIT: Final = 60.0
"""Seconds from a call's fork until its guest starts: for the schema, and the statements before the call."""
AFTER_LIMIT: Final = 30.0
"""Seconds from the guest's end to the rows."""
AGAIN: Final = 20.0
"""Seconds for a call that trapped when it is made again on the interpreter, which is slower."""
BEGAN: Final = b"began\n"
ENDED: Final = b"ended\n"
NEXT: Final = {"before": (BEGAN, ""), "": (ENDED, "after")}
"""What a child reports at the end of each part, and the part that follows."""


@dataclass(frozen=True)
class ReadyCall:
    """A call whose module was checked and compiled."""

    number: int
    asked: FreshCall
    request: SingleCallRequest
    """Its manifest has the module's ABI."""
    code: CallCode


@dataclass
class _Running:
    """A call that is running in a child."""

    call: ReadyCall
    child: int
    """Its process id."""
    reading: int
    """Descriptor of its output."""
    page: int
    """Descriptor of the memory that holds the call's log."""
    deadline: float
    trapped: FreshCallDone | None
    """How the call ended, if it is being repeated to find out where it trapped."""
    part: str = "before"
    """The part that the child is doing: `before`, the call (empty), or `after`."""
    read: bytearray = field(default_factory=bytearray)
    """The part of the result that the child has written so far."""

    def take(self, piece: bytes) -> bool:
        """Read what the child has written; return whether it is now doing another part."""
        self.read += piece
        before = self.part
        while (said := NEXT.get(self.part)) is not None and self.read.startswith(said[0]):
            del self.read[: len(said[0])]
            self.part = said[1]
        return self.part != before


def main() -> int:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=FreshCalls)
    fence.die_with_parent(asked.parent)
    single_call.look_at_fence(asked.fence)
    guest.prepare()
    rehearse()
    ready = _Ready()
    waiting = deque[tuple[ReadyCall, FreshCallDone | None]]()
    for number, call in enumerate(asked.calls):
        try:
            waiting.append((ready.call(number, call), None))
        except CodedError as refused:
            _tell(FreshCallDone(number, _failure(refused.code, refused.message)))
    running: list[_Running] = []
    while waiting or running:
        while waiting and len(running) < processors():
            running.append(_begin(asked.schema, *waiting.popleft()))
        for one, done in _ended(running):
            running.remove(one)
            if done.result.code == "guest_trap" and one.trapped is None and not done.result.snapshot:
                again = msgspec.structs.replace(one.call.request, cache="", places=True)
                code = one.call.code._replace(aot=None)
                waiting.appendleft((ReadyCall(done.number, one.call.asked, again, code), done))
                continue
            if one.trapped is not None:
                place, done = done.result.place, one.trapped
                done.result.message += f" It was in {place} of the module." if place else ""
            _tell(done)
    return 0


def _tell(done: FreshCallDone) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(done) + b"\n")
    sys.stdout.buffer.flush()


def _failure(code: str, message: str, log: bytes = b"") -> SingleCallResult:
    return SingleCallResult(0, log=log, code=code, message=message)


class _Ready:
    """Checks and compiles modules, each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, str], tuple[str, CallCode] | CodedError] = {}
        """By file, and the manifest's pages and ABI: the module's ABI and code, or why it has none."""

    def call(self, number: int, asked: FreshCall) -> ReadyCall:
        """Return a call, with its module checked and compiled. Raises: CodedError, when the call can't be made."""
        try:
            manifest = completed(msgspec.convert(asked.manifest, Manifest))
            http = made_request(asked.method, asked.path, asked.query, asked.headers, asked.body)
            http = by_route(http, manifest) if asked.routed else http
            http = msgspec.structs.replace(http, headers=[*http.headers, *asked.tick])
        except (msgspec.ValidationError, RequestUnfit) as unfit:
            raise CodedError("request_unfit", f"{unfit}.") from None
        missing = [name for name in manifest.secrets if name not in asked.secrets]
        if missing:
            example = ", ".join(f'{name} = "…"' for name in missing)
            raise CodedError(
                "secret_missing",
                f"The function needs the secret {', '.join(missing)}, which the case hasn't: put "
                f"secrets = {{ {example} }} above all cases of its file.",
            )
        values = {name: asked.secrets[name] for name in manifest.secrets}
        if asked.http and manifest.http is None:
            raise CodedError("request_unfit", "The case answers HTTP requests; the manifest doesn't grant any: `http`.")
        try:
            if manifest.http is not None:
                GivenAnswers(manifest.http, asked.http)
        except NotFetched as unfit:
            raise CodedError("request_unfit", f"An answer of the case's `http` is for no URL. {unfit}") from None
        request = SingleCallRequest(
            asked.file, manifest, http, str(users_folder()), secrets=values, name=asked.name, http=asked.http
        )
        key = (asked.file, manifest.memory_pages, manifest.abi)
        known = self._known.get(key)
        if known is None:
            try:
                known = self._module(request)
            except CodedError as refused:
                known = refused
            except (WasmEdgeError, OSError) as error:
                known = CodedError("function_unloadable", f"{asked.file} can't be loaded: {error}.")
            self._known[key] = known
        if isinstance(known, CodedError):
            raise known
        abi, code = known
        request.manifest = msgspec.structs.replace(manifest, abi=abi)
        return ReadyCall(number, asked, request, code)

    def _module(self, request: SingleCallRequest) -> tuple[str, CallCode]:
        """Return a module's ABI and code. Raises: CodedError, WasmEdgeError or OSError, when no node can run the
        module."""
        wasm = request.path.read_bytes()

        def check() -> bytes:
            fence.enclose()
            fence.seal("check")
            try:
                return msgspec.json.encode([single_call.checked(request, wasm).abi, "", ""])
            except ModuleRefused as refused:
                return msgspec.json.encode(["", refused.code, str(refused)])

        try:
            answer, _ = run_forked(check, CHECK_LIMIT)
        except TimeoutError:
            answer = b""
        if not answer:
            raise CodedError("check_crashed", f"The check of {request.file} ended on what it was given.")
        abi, code, message = msgspec.json.decode(answer, type=tuple[str, str, str])
        if code:
            raise CodedError(code, message)
        return abi, single_call.make_ready(request)


def _begin(schema: list[ProjectChange], call: ReadyCall, trapped: FreshCallDone | None) -> _Running:
    """Start a child that makes the call."""
    page = progress_page.create()
    call.request.log = page
    me = os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            fence.die_with_parent(me)
            _work(schema, call, writing)
        except BaseException as error:
            # The reader of the child's output reports what was missing.
            sys.stderr.write(f"{call.asked.name}: {error!r}\n")
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    return _Running(call, child, reading, page, time.monotonic() + BEGIN_LIMIT, trapped)


def _ended(running: list[_Running]) -> Iterator[tuple[_Running, FreshCallDone]]:
    """Wait until a child has written something, or is late; yield the calls that have ended."""
    pause = max(0.0, min(one.deadline for one in running) - time.monotonic())
    readable = select.select([one.reading for one in running], [], [], pause)[0]
    for one in list(running):
        late = time.monotonic() > one.deadline
        if one.reading in readable:
            piece = os.read(one.reading, 1 << 16)
            if one.take(piece):
                limit = one.call.request.manifest.time_limit_ms / 1000
                limit = limit if one.trapped is None else max(limit, AGAIN)
                one.deadline = time.monotonic() + (AFTER_LIMIT if one.part == "after" else limit)
                late = False
            if piece and not late:
                continue
        elif not late:
            continue
        yield one, _end(one, late=late)


def _end(one: _Running, *, late: bool) -> FreshCallDone:
    """Return the result of a call whose child has closed its pipe or is late."""
    if late:
        os.kill(one.child, signal.SIGKILL)
    status = os.waitpid(one.child, 0)[1]
    os.close(one.reading)
    log = progress_page.log(progress_page.open_page(one.page), 0)
    os.close(one.page)
    number, part = one.call.number, one.part
    if not late:
        # Partial output, or output that no child of ours would write, is no answer.
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(one.read, type=FreshCallDone)
    name, limit = one.call.asked.name, one.call.request.manifest.time_limit_ms
    if part:
        seconds = BEGIN_LIMIT if part == "before" else AFTER_LIMIT
        why = f"took longer than {seconds:g} s" if late else "ended the process"
        what = "The schema, or what comes before the call," if part == "before" else "What comes after the call"
        return FreshCallDone(number, _failure("sql_failed", f"{what} {why}."), part)
    if late:
        text = f"{name} ran longer than {limit} ms, which its manifest allows."
        return FreshCallDone(number, SingleCallResult(504, log=log, code="time_limit", message=text))
    ended = f"was ended by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "ended"
    text = f"The process that ran {name} {ended}."
    return FreshCallDone(number, SingleCallResult(502, log=log, code="worker_crashed", message=text))


def _work(schema: list[ProjectChange], call: ReadyCall, out: int) -> None:
    """Make the call, and write its result."""
    asked, request, code = call.asked, call.request, call.code

    def say(line: bytes) -> None:
        while line:
            line = line[os.write(out, line) :]

    done = FreshCallDone(call.number, SingleCallResult(0))
    try:
        fence.enclose(compiled_code.files_of(code.aot or request.path))
        written = single_call.before_seal(request)
        with _fresh_database(schema, asked.before) as database:
            database.set_query_only(request.grant == "read")
            database.rows("BEGIN")
            used = None if request.grant == "none" else database
            done.result = single_call.call(request, request.manifest, code, used, written, lambda: say(BEGAN))
            database.rollback()
            database.set_query_only(False)
            say(ENDED)
            done.rows = [_rows(database, statement) for statement in asked.after]
    except _PartFailed as failed:
        done.part, done.result = failed.part, _failure(failed.code, failed.message, done.result.log)
    except (WasmEdgeError, OSError) as error:
        done.result = _failure("function_unloadable", f"{request.file} can't be loaded: {error}.")
    say(msgspec.json.encode(done))


class _PartFailed(CodedError):
    """Something before or after the call failed; `part` is as in `FreshCallDone`."""

    def __init__(self, code: str, message: str, part: str) -> None:
        super().__init__(code, message)
        self.part = part


@contextlib.contextmanager
def _fresh_database(schema: list[ProjectChange], before: str) -> Iterator[LibsqlDatabase]:
    """Seal the process, and open a new database in memory, like a node's after these schema changes.

    Raises: _PartFailed.
    """
    with in_memory() as database:
        fence.seal("worker", database.lock.fileno())
        database.rows("PRAGMA temp_store = MEMORY")
        access_rules = AccessRules.read(database)
        database.rows("BEGIN")
        for change in schema:
            try:
                run_change.run(database, access_rules, change.sql)
            except SchemaChangeRefused as refused:
                raise _PartFailed(refused.code, f"{change.name}: {refused}", "schema") from None
        database.rows("COMMIT")
        database.rows("PRAGMA foreign_keys = ON")
        if before.strip():
            database.rows("BEGIN")
            _run_before(database, before)
        yield database


def _run_before(database: LibsqlDatabase, before: str) -> None:
    try:
        for statement in schema_change.split(before):
            database.rows(statement.sql)
        database.rows("COMMIT")
    except SchemaChangeRefused as refused:
        raise _PartFailed("sql_invalid", str(refused), "before") from None
    except ValueError as error:
        raise _PartFailed("sql_invalid", f"{error}.", "before") from None


def _rows(database: LibsqlDatabase, statement: str) -> list[list[object]]:
    """Return the rows of a statement. Raises: _PartFailed."""
    try:
        return [[shown_value(value) for value in row] for row in database.rows(statement)]
    except ValueError as error:
        raise _PartFailed("sql_invalid", f"{statement}: {error}.", "after") from None


if __name__ == "__main__":
    sys.exit(main())
