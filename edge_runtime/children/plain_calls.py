"""Run a worker's plain calls in C: those of `direct` and WAGI functions without a grant for HTTP.

The C library (`edge_runtime.native`) reads the worker's frames and answers such calls by itself. While a guest runs, it
calls this module for each statement, and when the guest ends, to commit. It returns for every other frame, and when a
guest has failed or given an unknown kind of answer: then this module does what `Worker` does for a call that it runs.
Without the library, the worker runs all calls.
"""

from collections.abc import Callable, Mapping, Sequence
from socket import socket
from typing import Any, Final

from edge_runtime.children.function_cache import Entry, Functions
from edge_runtime.children.worker_services import UNANSWERED, CallEnds, CallRights, FindRights
from edge_runtime.guests.host_functions import RecentCache
from edge_runtime.guests.plain_guest import CallEnd, PlainGuest
from edge_runtime.ipc import answer_head, claims, frames, progress_page, request_head
from edge_runtime.ipc.frame_reader import QUIET_MS, FrameReader
from edge_runtime.native import library as native
from edge_runtime.sql.call_sql import CallSql
from edge_runtime.wasmedge import OuterModule, engine, value_type

ffi: Final = native.ffi

_outer: list[OuterModule] = []
"""Where the loop runs, made by `prepare`."""


def prepare() -> None:
    """Load the C library and the outer module, if they are built: before the fork, so that children share them.

    Raises: WasmEdgeError, when the outer module can't be loaded.
    """
    if not native.unusable() and not _outer:
        entered = native.address(native.symbol("skerry_entered"))
        _outer.append(OuterModule(native.BUILT / native.OUTER, entered))


def is_prepared() -> bool:
    """Return whether plain calls run in C."""
    return bool(_outer)


class PlainCalls:
    """The C loop of a worker."""

    def __init__(
        self,
        sock: socket,
        reader: FrameReader,
        slot: memoryview,
        mark: progress_page.Mark,
        functions: Functions,
        ends: CallEnds,
        rights: FindRights,
        run: Callable[[int, frames.Frame], None],
    ) -> None:
        """Use the worker's `slot` of the progress page; `run` runs a claimed call that needs Python."""
        self._sock = sock
        self._reader = reader
        self._mark = mark
        self._cache = functions
        self._ends, self._find_rights, self._run = ends, rights, run
        self._rights = RecentCache[CallRights]()
        """Results of `rights`, with the methods in bytes."""
        self._sql: CallSql | None = None
        """The SQL of the running call, once its guest has used it."""
        self._sql_answer = b""
        """The last answer, kept alive because the loop has its address."""
        self._raised: BaseException | None = None
        """Why `_ask` or `_settle` ended the running call."""
        self._functions: dict[int, tuple[Any, Entry]] = {}
        """By address of the C side's `Function`."""
        self._of_key: dict[Any, Any] = {}
        """The C side's functions by the keys of their entries."""
        self._kept: dict[int, Sequence[Any]] = {}
        """What a function of the C side points to, by its address."""
        self._by_target: dict[tuple[int, int], Any] = {}
        self._releases: Sequence[Any] = ()
        self._page = ffi.from_buffer("uint8_t[]", slot.cast("B"), require_writable=True)
        self._event = ffi.new("Event *")
        self._library = native.opened()
        self._loop = ffi.gc(self._library.skerry_loop_new(self._setup(sock)), self._library.skerry_loop_free)
        if not self._loop:
            raise MemoryError("there is no memory for the loop of plain calls")

    def _setup(self, sock: socket) -> Any:
        outer = _outer[0]
        setup = ffi.new("Setup *")
        setup.socket = sock.fileno()
        setup.slot = self._page
        setup.log_at, setup.log_bytes = progress_page.LOG_AT, progress_page.LOG_BYTES
        setup.claims_at, setup.claims = progress_page.CLAIMS_AT, claims.CLAIMS
        setup.head_limit = answer_head.LIMIT
        setup.executor, setup.outer = _pointer(outer.executor), _pointer(outer.function)
        self._callbacks = ffi.callback("Ask", self._ask), ffi.callback("Settle", self._settle)
        setup.ask, setup.settle = self._callbacks
        for field, address in engine().items():
            setattr(setup.engine, field, _pointer(address))
        setup.engine.type_i32, setup.engine.type_i64 = value_type("i"), value_type("I")
        return setup

    # Which calls the loop runs

    def serve(self, releases: Mapping[int, Sequence[Entry]]) -> None:
        """Set the functions that may be called, by the serials of their sets; others are forgotten."""
        self._rights.clear()
        kept = {entry.key for entries in releases.values() for entry in entries}
        for key in self._of_key.keys() - kept:
            gone = native.address(self._of_key.pop(key))
            del self._functions[gone]
            self._kept.pop(gone, None)
        made, arrays = ffi.new("Release[]", max(1, len(releases))), []
        self._by_target = {}
        for position, (serial, entries) in enumerate(releases.items()):
            functions = [self._function(entry) for entry in entries]
            arrays.append(ffi.new("Function *[]", functions or 1))
            made[position].serial, made[position].count = serial, len(functions)
            made[position].functions = arrays[-1]
            self._by_target |= {(serial, index): function for index, function in enumerate(functions)}
        self._releases = (made, *arrays)
        self._library.skerry_loop_serve(self._loop, made, len(releases))

    def _function(self, entry: Entry) -> Any:
        function = self._of_key.get(entry.key)
        if function is None:
            function = self._of_key[entry.key] = ffi.new("Function *")
            self._functions[native.address(function)] = (function, entry)
        return function

    def learn(self, entry: Entry) -> None:
        """Let the loop run a function's calls from now on, if it can.

        The function has just been called in Python; if its guest used something that the loop lacks, Python runs its
        next calls too (`foreign`).
        """
        manifest, function = entry.local.manifest, self._of_key.get(entry.key)
        if entry.function is None or function is None or function.ready:
            return
        if function.foreign:
            function.foreign -= 1
            return
        if manifest.http is not None:
            return
        guest = entry.function.runner
        if not isinstance(guest, PlainGuest) or (settings := guest.plain_settings()) is None:
            return
        loan = guest.program.loan()
        if loan is None:
            return
        name = guest.name.encode()
        kept = [ffi.new("uint8_t[]", name), ffi.new("uint8_t[]", settings)]
        for field in ("executor", "store", "module", "memory", "base"):
            setattr(function, field, _pointer(getattr(loan, field)))
        function.image, function.restored, function.hot_count = _pointer(loan.image), 0, 0
        function.pages, function.most, function.initializes = loan.pages, loan.most, loan.initializes
        function.wagi, function.sql = guest.WAGI, manifest.sql != "none"
        function.log_bytes, function.response_bytes = guest.limits.log_bytes, guest.limits.response_bytes
        function.name, function.name_size = kept[0], len(name)
        function.settings, function.settings_size = kept[1], len(settings)
        self._kept[native.address(function)] = kept

        def given_up() -> None:
            function.ready = 0

        guest.program.lent = given_up
        function.ready = 1

    def note_use(self) -> None:
        """Tell each entry when the loop last called it."""
        for function, entry in self._functions.values():
            entry.used = max(entry.used, function.used)

    # Frames

    def next(self) -> frames.Frame | None:
        """Return the next frame that isn't for the loop, or None if the front has closed the socket.

        Raises: ChildGone, when it closed in the middle of a frame.
        """
        frame = self._reader.next()
        if frame is None or not self._is_ready(frame) or not self._give(frame):
            return frame
        self._serve_calls()
        # The loop has left this frame to Python. `_is_ready` isn't asked again: it can't see all of the loop's reasons.
        return self._reader.next()

    def _is_ready(self, frame: frames.Frame) -> bool:
        if frame.kind != frames.CALL and frame.kind != frames.CALL_TIMED:
            return False
        target = request_head.target(frame.head)
        function = None if target is None else self._by_target.get(target)
        return function is not None and bool(function.ready)

    def _give(self, frame: frames.Frame) -> bool:
        """Give the loop a frame and what has been received after it. Return False if that is too much."""
        if (
            self._reader.keeps_frames
            or len(frame.head) + len(frame.body) > self._library.LOOP_ROOM - frames.HEADER_BYTES
        ):
            return False
        behind = self._reader.take_received()
        received = frames.pack(frame.request, frame.kind, frame.head, frame.body) + behind
        if self._library.skerry_loop_give(self._loop, received, len(received)):
            return True
        self._reader.put_back(behind)
        return False

    def _serve_calls(self) -> None:
        """Let the loop answer calls until it meets a frame for Python, or no more frames come."""
        event, library = self._event, self._library
        while True:
            event.calls = self._cache.calls
            kind = library.skerry_loop_run(self._loop, event, QUIET_MS if self._reader.had_large else 0)
            self._cache.calls = event.calls
            if kind in (library.EVENT_FRAME, library.EVENT_CLOSED):
                self._reader.put_back(ffi.buffer(event.bytes, event.size)[:])
                return
            if kind == library.EVENT_QUIET:
                self._reader.quieten()
            elif kind == library.EVENT_BROKEN:
                raise RuntimeError(f"the loop of plain calls was ended by WasmEdge: {event.result:#x}")
            else:
                self._handle(kind, event)

    # SQL, for the loop. An exception must not pass through C: `_handle` raises it again.

    def _ask(self, start: Any, size: int) -> int:
        try:
            event, sql = self._event, self._sql
            if sql is None:
                self._take_over(event)
                sql = self._sql = self._ends.sql(self._rights_of(event))
            answer = self._sql_answer = sql.execute(ffi.buffer(start, size)[:])
            event.sql_answer, event.sql_answer_size = ffi.from_buffer("uint8_t[]", answer), len(answer)
        except BaseException as error:
            self._raised = error
            return 0
        return 1

    def _settle(self, status: int) -> int:
        try:
            event, sql = self._event, self._sql
            if sql is None:
                # Its guest used no SQL.
                self._take_over(event)
            times = self._settled(event, sql, status)
            if times:
                self._sock.sendall(times)
        except BaseException as error:
            self._raised = error
            return 0
        self._sql, self._sql_answer = None, b""
        return 1

    def _take_over(self, event: Any) -> None:
        """Take over the progress reports of the call that the loop started."""
        self._mark.take_over(event.request, event.started_ns)
        self._ends.steps.clear()

    def _rights_of(self, event: Any) -> CallRights:
        """Return which function the loop's call belongs to, and what the call may do."""
        key = event.serial, event.index, _method(event)
        return self._rights.get(key) or self._rights.keep(
            key, self._find_rights(event.serial, event.index, key[2].decode("latin-1"))
        )

    def _settled(self, event: Any, sql: CallSql | None, status: int) -> bytes:
        """Commit what the call wrote; return the frame with its times, if the front should get it."""
        ends = self._ends
        if sql is not None:
            ends.settle(sql, status)
            if sql.denied:
                ends.deny(event.request, sql)
        _, entry = self._functions[native.address(event.function)]
        return ends.times_if_slow(event.request, entry, status, asked=bool(event.timed))

    # Work left to Python

    def _handle(self, kind: int, event: Any) -> None:
        """Finish a call that the loop ran."""
        library, request = self._library, event.request
        _, entry = self._functions[native.address(event.function)]
        guest = _guest(entry)
        if event.uninstantiated:
            guest.program.renew()
        elif event.unclear:
            guest.program.give_up()
        if kind == library.EVENT_UNCLEAR:
            return
        sql, raised = self._sql, self._raised
        if sql is None:
            self._take_over(event)
        self._sql, self._sql_answer, self._raised = None, b"", None
        if kind == library.EVENT_RETURNED:
            if sql is not None:
                sql.rollback()
            bytes_of = ffi.buffer(event.bytes, event.size)
            self._run(request, frames.unpack(bytes_of[:]))
        else:
            entry.used = self._cache.calls
            log = ffi.buffer(event.log, event.log_size)[:] if event.log_size else b""
            timed = event.function.sql == 1 or event.timed == 1
            try:
                if raised is not None:
                    raise raised
                if kind == library.EVENT_FAILED:
                    raise guest.failed(self._end(event), log)
                self._answer(event, guest, sql, log)
            except UNANSWERED as error:
                self._ends.unanswered(request, error, sql, log, timed=timed)
        self._mark.end()

    def _end(self, event: Any) -> CallEnd:
        library = self._library
        stop = {library.STOP_EXIT: "exit", library.STOP_OUTPUT: "output", library.STOP_ROOM: "room"}.get(event.stop, "")
        return CallEnd(stop, event.result, event.exit_code, event.address, event.length, event.pages)

    def _answer(self, event: Any, guest: PlainGuest, sql: CallSql | None, log: bytes) -> None:
        """Check and send an answer whose content the loop hasn't checked.

        Raises: GuestFault, when it can't be sent; CommitFailed.
        """
        request = event.request
        answer = ffi.buffer(event.out, event.out_size)[:] if event.out_size else b""
        status, lines, body = guest.checked(answer, self._end(event), _method(event).decode("latin-1"), log)
        times = self._settled(event, sql, status) if event.function.sql or event.timed else b""
        if log:
            frames.send(self._sock, request, frames.LOG, b"", log)
        frames.send(self._sock, request, status, lines, body, times)
        if (seen := guest.seen_lines(answer)) is not None:
            block, status, has_type, lines = seen
            self._library.skerry_loop_keep(
                self._loop, guest.WAGI, block, len(block), status, has_type, lines, len(lines)
            )


def _guest(entry: Entry) -> PlainGuest:
    runner = None if entry.function is None else entry.function.runner
    if not isinstance(runner, PlainGuest):
        raise RuntimeError(f"the loop of plain calls has run {entry.local.name}, no loaded plain function")
    return runner


def _method(event: Any) -> bytes:
    return bytes(ffi.buffer(event.method, event.method_size))


def _pointer(address: int) -> Any:
    return ffi.cast("void *", address)
