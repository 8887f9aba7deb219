"""A worker: a process that runs one guest at a time, with its own libsql connection, opened after the fork.

It handles the front's frames in order. A guest's fault fails only its own call; a bug in the worker itself ends the
worker, and the front starts another one.
"""

import socket
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from control.protocol import faults
from control.protocol.manifest import sql_grant
from edge_runtime import process_memory
from edge_runtime.children import plain_calls
from edge_runtime.children.function_cache import Entry, Functions
from edge_runtime.children.worker_services import UNANSWERED, CallEnds, CallRights, FrontHttp
from edge_runtime.guests import guest, invocation
from edge_runtime.guests.host_functions import RecentCache, host
from edge_runtime.ipc import frames, progress_page, request_head
from edge_runtime.ipc.claims import Claims
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence
from edge_runtime.sql import database, ticks
from edge_runtime.sql.session import Session

AT_ONCE: Final = 4
"""If a release adds at most this many functions, they are loaded before they are called: somebody may be waiting for
them."""
_KEPT_BLOCK: Final = 32 * 1024 * 1024
"""Bytes up to which freed blocks are kept while large bodies arrive; a body is one block here."""
_KEPT_HEAD: Final = 2048
"""The most bytes of a call's head that is cached, decoded, for later calls with the same head."""

_decode_load: Final = msgspec.json.Decoder(frames.Load).decode
_decode_preload: Final = msgspec.json.Decoder(frames.Preload).decode
_decode_notes: Final = msgspec.json.Decoder(frames.TickNotes).decode
_decode_keep: Final = msgspec.json.Decoder(frames.Keep).decode


def serve(sock: socket.socket, shared: memoryview, slot: int, settings: frames.ChildSettings) -> None:
    """Serve the front until it closes the socket."""
    try:
        opened = database.connect_until_exit(Path(settings.state) / database.FILE, settings.synchronous)
    except (database.DatabaseOpenError, OSError) as error:
        code = error.code if isinstance(error, database.DatabaseOpenError) else "disk_failed"
        text = f"it can't open the libsql file: {error}" if isinstance(error, OSError) else error.message
        frames.send_json(sock, progress_page.NONE, frames.FAILED, frames.ChildFailure(code, text))
        return
    process_memory.keep_freed(_KEPT_BLOCK)
    fence.limit_files(settings.temp_limit)
    opened.file_limit_was_hit = fence.file_limit_was_hit
    fence.seal("worker", opened.lock.fileno())
    functions = Functions(settings.code_memory)
    host().wasi.copy = progress_page.LogPage(shared, slot)
    mark, reader = progress_page.Mark(shared, slot), FrameReader(sock, process_memory.trim_heap)
    worker = Worker(sock, reader, mark, Claims(shared, slot), opened, functions)
    if plain_calls.is_prepared():
        own = shared[slot * progress_page.SLOT_BYTES // shared.itemsize :]
        worker.plain = plain_calls.PlainCalls(
            sock, reader, own, mark, functions, worker.ends, worker.rights, worker.call
        )
    # Calls do their own waiting, so that this process can say what it waits for (`CallSql`).
    opened.rows("PRAGMA busy_timeout = 0")
    frames.send(sock, progress_page.NONE, frames.READY)
    worker.run()


class ServedRelease(NamedTuple):
    """A set of modules that the worker may be asked to call."""

    generation: int
    functions: list[Entry]


class Known(NamedTuple):
    """A call's head, decoded."""

    rights: CallRights
    before: tuple[Any, ...]
    """Fields of a `guest.Request` that come before its body."""
    after: tuple[Any, ...]
    """Fields that come after the body."""


class Worker:
    def __init__(
        self,
        sock: socket.socket,
        reader: FrameReader,
        mark: progress_page.Mark,
        claims: Claims,
        opened: database.LibsqlDatabase,
        functions: Functions,
    ) -> None:
        self._sock = sock
        self._mark = mark
        self._claims = claims
        self._database = opened
        self._functions = functions
        self.plain: plain_calls.PlainCalls | None = None
        """Runs plain calls in C; None if this object runs them itself."""
        self._releases: dict[int, ServedRelease] = {}
        """The sets of modules, by the front's serial."""
        self._reader = reader
        self.ends = CallEnds(sock, mark, Session(opened))
        self._ungranted = guest.CallServices(self.ends.denials.sql, self.ends.denials.http)
        self._known = RecentCache[Known]()
        """Decoded heads by their bytes: many calls have the same head, byte for byte."""

    def run(self) -> None:
        """Serve until the front closes the socket."""
        next_frame = self._reader.next if self.plain is None else self.plain.next
        take, end = self._claims.take, self._mark.end
        while (frame := next_frame()) is not None:
            request = frame.request
            if frame.kind in (frames.CALL, frames.CALL_TIMED, frames.CALL_TICK):
                # Otherwise the front has taken the call back.
                if take(request):
                    self.call(request, frame)
                    end()
                continue
            match frame.kind:
                case frames.RELEASE:
                    faults.reach("edge.load.before")
                    failures = self._load(_decode_load(frame.body))
                    faults.reach("edge.load.after")
                    frames.send_json(self._sock, request, frames.LOADED, frames.Loaded(failures))
                case frames.PRELOAD:
                    faults.reach("edge.preload.before")
                    damaged = self._preload(_decode_preload(frame.body))
                    frames.send(self._sock, request, frames.DAMAGED if damaged else frames.DONE)
                case frames.FORGET:
                    self._forget(_decode_keep(frame.body))
                    frames.send(self._sock, request, frames.DONE)
                case frames.TICKS:
                    notes = _decode_notes(frame.body).notes
                    faults.reach("edge.ticks.before")
                    noted = not notes or ticks.note(self._database, notes)
                    frames.send_json(
                        self._sock, request, frames.TICKED, frames.StoredTicks(ticks.read(self._database), noted)
                    )
                case frames.QUERY_RELEASE:
                    self._database.rows(f"PRAGMA busy_timeout = {database.BUSY_MS}")
                    frames.send_json(self._sock, request, frames.RELEASE_IS, database.settled(self._database))
                    self._database.rows("PRAGMA busy_timeout = 0")
                case _:
                    raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no worker knows")

    def call(self, request: int, frame: frames.Frame) -> None:
        """Run one call and answer it. Before the answer is sent, its transaction is committed or undone."""
        key = frame.head
        rights, before, after = self._known.get(key) or self._know(key)
        entry, ends, asked = rights.entry, self.ends, frame.kind == frames.CALL_TIMED
        function, manifest, denials = entry.function, entry.local.manifest, ends.denials
        self._functions.calls = entry.used = self._functions.calls + 1
        if function is None:
            self._mark.loading(request)
            self._note_use()
            loaded = self._functions.load(entry)
            if self._functions.damaged:
                frames.send(self._sock, request, frames.DAMAGED)
            if isinstance(loaded, frames.ChildFailure):
                ends.fault(request, loaded.code, loaded.message)
                return
            frames.send(self._sock, request, frames.NEWLY_LOADED)
            function = loaded
        sql, services = None, self._ungranted
        # A call without grants spends all its time in its guest, so its times are sent only on request.
        timed = rights.grant != "none" or manifest.http is not None or asked
        if timed:
            ends.steps.clear()
            if rights.grant != "none":
                sql = ends.sql(rights, _tick_of(entry, key) if frame.kind == frames.CALL_TICK else None)
            sending = None if sql is None else sql.sending
            http = (
                denials.http
                if manifest.http is None
                else FrontHttp(self._sock, self._reader, request, sending, ends.steps)
            )
            services = guest.CallServices(denials.sql if sql is None else sql, http)
        guest_request = guest.Request(*(*before, frame.body, *after))
        self._mark.start(request)
        try:
            answer = function.runner.call(guest_request, services)
            if sql is not None:
                ends.settle(sql, answer.status)
        except UNANSWERED as error:
            log = error.log if isinstance(error, guest.GuestFault) else host().wasi.stderr
            ends.unanswered(request, error, sql, log, timed=timed)
        else:
            if denials.any or (sql is not None and sql.denied):
                ends.deny(request, sql)
            if answer.log:
                frames.send(self._sock, request, frames.LOG, b"", answer.log)
            times = ends.times_if_slow(request, entry, answer.status, asked=asked) if timed else b""
            frames.send(self._sock, request, answer.status, answer.head, answer.body, times)
            if self.plain is not None:
                self.plain.learn(entry)

    def rights(self, serial: int, function: int, method: str) -> CallRights:
        """Return which function a call belongs to, and what the call may do."""
        release = self._releases[serial]
        entry = release.functions[function]
        manifest = entry.local.manifest
        grant = sql_grant(manifest, method)
        return CallRights(entry, release.generation, grant, "" if grant == manifest.sql else method)

    def _know(self, key: bytes) -> "Known":
        """Decode a call's head."""
        head = request_head.decode_head(key)
        rights, keeps = self.rights(head.serial, head.function, head.method), len(key) <= _KEPT_HEAD
        abi = rights.entry.local.manifest.abi
        known = Known(rights, *invocation.request_fields(head, abi, key if keeps else b""))
        return self._known.keep(key, known) if keeps else known

    def _load(self, load: frames.Load) -> list[frames.ChildFailure]:
        """Prepare for a set of modules; return the functions that couldn't be loaded.

        Functions of which another version is loaded are loaded at once, so that no call waits for that, and so are a
        few new ones. The others are loaded when they are called.
        """
        before = {entry.local.name for release in self._releases.values() for entry in release.functions}
        new = {local.name for local in load.release.functions} - before
        if not self._releases or len(new) > AT_ONCE:
            new.clear()
        entries, failures = [], []
        for local in load.release.functions:
            entry = self._functions.entry(local, load.secrets.get(local.name, {}), load.lacking.get(local.name))
            entries.append(entry)
            wanted = local.name in new or self._functions.loaded(local.name)
            if wanted and entry.function is None and entry.lacking is None:
                entry.used = self._functions.calls
                self._note_use()
                loaded = self._functions.load(entry)
                if isinstance(loaded, frames.ChildFailure) and local.code[0]:
                    failures.append(loaded)
        self._releases[load.serial] = ServedRelease(load.release.generation, entries)
        self._changed()
        return failures

    def _preload(self, preload: frames.Preload) -> bool:
        """Load a function that will be called, if it can be loaded. Return whether its compiled code is damaged."""
        entry = self._releases[preload.serial].functions[preload.function]
        if entry.function is not None or entry.lacking is not None:
            return False
        entry.used = self._functions.calls
        self._note_use()
        # If that fails, the first call tries again and reports it.
        self._functions.load(entry)
        return bool(self._functions.damaged)

    def _note_use(self) -> None:
        """Note which functions were called last, before others may be unloaded for a new one."""
        if self.plain is not None:
            self.plain.note_use()

    def _changed(self) -> None:
        """Forget what was derived from the previous sets of modules."""
        self._known.clear()
        if self.plain is not None:
            self.plain.serve({serial: release.functions for serial, release in self._releases.items()})

    def _forget(self, keep: frames.Keep) -> None:
        for serial in self._releases.keys() - set(keep.serials):
            del self._releases[serial]
        self._changed()
        self._functions.keep(entry for release in self._releases.values() for entry in release.functions)


def _tick_of(entry: Entry, head: bytes) -> ticks.Tick:
    """Return the tick that makes a call, by the call's head."""
    return ticks.of_headers(entry.local.name, request_head.decode_block(request_head.decode_head(head).block).headers)
