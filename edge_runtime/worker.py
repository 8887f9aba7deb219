"""A worker: a process that runs one guest at a time, on a libsql connection of its own that it opened after the fork.

It does what the front's frames say, in their order. A fault of the guest's costs its own call; one of ours ends the
worker, and the front starts another.
"""

import mmap
import socket
from pathlib import Path
from typing import Final

import msgspec

from . import database, frames, guest, page
from .sql import CallSql, StaleRelease
from .wasmedge import Damaged, Unsafe, WasmEdgeError

DATABASE: Final = Path("db", "skerry.db")

_decode_load: Final = msgspec.json.Decoder(frames.Load).decode
_decode_keep: Final = msgspec.json.Decoder(frames.Keep).decode


def serve(sock: socket.socket, shared: mmap.mmap, slot: int, settings: frames.ChildSettings) -> None:
    """Serve the front until it closes the socket."""
    with database.connect(Path(settings.state) / DATABASE, settings.synchronous) as opened:
        worker = Worker(sock, page.Mark(shared, slot), opened)
        frames.send(sock, page.NONE, frames.READY)
        worker.run()


class Loaded:
    """A function that was loaded, or why it couldn't be."""

    def __init__(self, local: frames.LocalFunction, function: guest.Function | None, failure: frames.Failure | None):
        self.local = local
        self.function = function
        self.failure = failure


class Release:
    def __init__(self, release: frames.LocalRelease, functions: list[Loaded]) -> None:
        self.generation = release.generation
        self.functions = functions


class Worker:
    def __init__(self, sock: socket.socket, mark: page.Mark, opened: database.Database) -> None:
        self._sock = sock
        self._mark = mark
        self._database = opened
        self._releases: dict[int, Release] = {}
        """By the front's serial."""

    def run(self) -> None:
        """Until the front closes the socket."""
        reader = frames.Reader(self._sock)
        while (frame := reader.next()) is not None:
            request = frame.request
            match frame.kind:
                case frames.CALL:
                    self._call(request, frame)
                    self._mark.end()
                case frames.RELEASE:
                    failures = self._load(_decode_load(frame.body))
                    frames.send_json(self._sock, request, frames.LOADED, frames.Loaded(failures))
                case frames.FORGET:
                    self._forget(_decode_keep(frame.body))
                    frames.send(self._sock, request, frames.DONE)
                case frames.QUERY_RELEASE:
                    frames.send_json(self._sock, request, frames.RELEASE_IS, database.stored(self._database))
                case _:
                    raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no worker knows")

    def _call(self, request: int, frame: frames.Frame) -> None:
        """Run one call and answer it: its transaction is committed before the answer is sent, or undone."""
        serial, index, method, path, query, headers, client = frames.decode_call(frame.head)
        release = self._releases[serial]
        loaded = release.functions[index]
        if loaded.function is None:
            assert loaded.failure is not None  # noqa: S101
            self._fault(request, loaded.failure.code, loaded.failure.message, 503)
            return
        grant = loaded.local.manifest.sql
        sql = None if grant == "none" else CallSql(self._database, grant, release.generation, self._mark)
        asked = guest.Request(
            method,
            path,
            query.decode("latin-1"),
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
            frame.body,
            client,
        )
        self._mark.start(request)
        try:
            answer = loaded.function.call(asked, sql)
            if sql is not None:
                if answer.status < 500:
                    sql.commit()
                else:
                    sql.rollback()
        except StaleRelease:
            sql.rollback()
            frames.send(self._sock, request, frames.STALE)
        except guest.GuestFault as fault:
            if sql is not None:
                sql.rollback()
            self._fault(request, fault.code, str(fault), fault.status, fault.log)
        else:
            head = frames.encode_head((answer.headers, answer.log))
            frames.send(self._sock, request, answer.status, head, answer.body)

    def _fault(self, request: int, code: str, message: str, status: int, log: bytes = b"") -> None:
        fault = frames.Fault(code, message, status, log.decode(errors="replace"))
        frames.send_json(self._sock, request, frames.FAULT, fault)

    def _load(self, load: frames.Load) -> list[frames.Failure]:
        """Load a release's modules; those that other serials have loaded from the same file are shared."""
        have = {key(f.local): f for release in self._releases.values() for f in release.functions if f.function}
        functions = [have.get(key(local)) or _load(local) for local in load.release.functions]
        self._releases[load.serial] = Release(load.release, functions)
        return [f.failure for f in functions if f.failure is not None]

    def _forget(self, keep: frames.Keep) -> None:
        gone = [self._releases.pop(serial) for serial in self._releases.keys() - set(keep.serials)]
        used = {id(f) for release in self._releases.values() for f in release.functions}
        closed = {id(f): f for release in gone for f in release.functions if id(f) not in used}
        for loaded in closed.values():
            if loaded.function is not None:
                loaded.function.close()


def key(local: frames.LocalFunction) -> tuple[str, str, str]:
    """What a loaded function depends on."""
    return local.name, local.aot_digest, local.manifest_digest


def _load(local: frames.LocalFunction) -> Loaded:
    manifest = local.manifest
    if not local.aot:
        text = f"The function {local.name} isn't compiled on this node yet; try again."
        return Loaded(local, None, frames.Failure("function_uncompiled", text))
    limits = guest.Limits(manifest.memory_pages, manifest.response_limit)
    try:
        function = guest.Function.load(local.name, Path(local.aot), local.aot_digest, limits, manifest.config)
    except (Damaged, WasmEdgeError, OSError) as error:
        text = f"The function {local.name}, version {local.version}, can't be loaded: {error}."
        return Loaded(local, None, frames.Failure("function_unloadable", text))
    return Loaded(local, function, None)
