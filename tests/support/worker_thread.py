"""A worker in a thread of the test, outside the fence, and its front's end of the socket: calls go in as frames, in one
write or several, and what the worker says comes back as frames."""

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edge_runtime.children import plain_calls
from edge_runtime.children.function_cache import Functions
from edge_runtime.children.worker import Worker
from edge_runtime.guests.host_functions import host
from edge_runtime.ipc import frames, progress_page, request_head
from edge_runtime.ipc.claims import Claims
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sql import database
from edge_runtime.sql.queries import load
from tests.support.deadlines import scaled
from tests.support.functions import split_or_whole

DEADLINE = 60.0
SERIAL = 1
GENERATION = 7


class Said(NamedTuple):
    """What a worker said of one call."""

    kind: int
    """The status of an answer, or FAULT."""
    head: bytes
    body: bytes
    log: bytes
    denied: bytes = b""
    times: bytes = b""
    """Where the time went, if it told that (`call_times.decode`)."""


class WorkerThread:
    """Run by `worker`; of those whose plain calls run in C there may be one at a time in a process."""

    def __init__(
        self, folder: Path, sock: socket.socket, claims: Claims, words: memoryview, names: Sequence[str]
    ) -> None:
        self.folder = folder
        self.sock = sock
        self.claims = claims
        self.words = words
        self.ran: list[int] = []
        """The calls that Python has run, by their ids."""
        self._names = list(names)
        self._reader = FrameReader(sock)
        self._request = 0

    def frame(self, name: str, body: bytes = b"", *, claimable: bool = True, timed: bool = False, **head: Any) -> bytes:
        """A call's frame, which is claimable from now on; `timed`: the front asks for its times. `head` are arguments
        of `encode_head`."""
        self._request += 1
        if claimable:
            self.claims.offer(self._request)
        kind = frames.CALL_TIMED if timed else frames.CALL
        return frames.pack(self._request, kind, self.head(name, **head), body)

    def head(self, name: str, **given: Any) -> bytes:
        """The head of a call."""
        usual = {
            "via": request_head.PLAIN, "method": "POST", "path": "", "query": b"",
            "headers": [(b"host", b"a.example:1")],
            "script": f"/functions/{name}", "route": "", "params": [], "client": "127.0.0.1",
        }  # fmt: skip
        return request_head.encode_head(serial=SERIAL, function=self._names.index(name), **{**usual, **given})

    def send(self, *sent: bytes) -> None:
        """Send frames in one write."""
        self.sock.sendall(b"".join(sent))

    def answer(self) -> Said:
        """What the worker says of the next call that ends."""
        log, denied, times = b"", b"", b""
        while (frame := self._reader.next()) is not None:
            if frame.kind == frames.LOG:
                log += frame.body
            elif frame.kind == frames.DENIED:
                denied += frame.body
            elif frame.kind == frames.TIMES:
                times = frame.body
            elif frame.kind != frames.NEWLY_LOADED:
                return Said(frame.kind, frame.head, frame.body, log, denied, times)
        raise EOFError("the worker has closed its socket")

    def call(self, name: str, body: bytes = b"", **head: Any) -> Said:
        """Make a call, and wait for its end."""
        self.send(self.frame(name, body, **head))
        return self.answer()

    def fault(self, said: Said) -> tuple[str, str]:
        """Code and message of a fault."""
        assert said.kind == frames.FAULT, said
        found = msgspec.json.decode(said.body, type=frames.Fault)
        return found.code, found.message


@contextmanager
def worker(
    folder: Path,
    functions: Mapping[str, tuple[bytes, Mapping[str, Any]]],
    *,
    in_c: bool,
    eager: bool = False,
    schema: Sequence[str] = (),
) -> Iterator[WorkerThread]:
    """Run a worker with these modules and manifests until the block ends; `in_c`: plain calls run in the C library, and
    if `eager`, those of functions that have never answered too. The database is at their release, with what the
    statements `schema` make."""
    (folder / "aot").mkdir(mode=0o700, exist_ok=True)
    compiled_ones = [
        split_or_whole(wasm, folder / "aot", name, **manifest) for name, (wasm, manifest) in functions.items()
    ]
    release = frames.LocalRelease("r", 1, GENERATION, 0, compiled_ones)
    ours, theirs = socket.socketpair()
    ours.settimeout(scaled(DEADLINE))
    words = memoryview(mmap(-1, progress_page.SLOT_BYTES)).cast("Q")
    progress_page.clear(words, 0)
    mark, claims, cache = progress_page.Mark(words, 0), Claims(words, 0), Functions(1 << 40)
    claims.clear()
    made = WorkerThread(folder, ours, claims, words, list(functions))
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            with database.connect(folder / "libsql.db") as opened:
                opened.rows(load("write_release"), ("r", 1, str(GENERATION), "now"))
                for statement in schema:
                    opened.rows(statement)
                reader = FrameReader(theirs)
                host().wasi.copy = progress_page.LogPage(words, 0)
                running = Worker(theirs, reader, mark, claims, opened, cache)
                call = running.call

                def counted(request: int, frame: frames.Frame) -> None:
                    made.ran.append(request)
                    call(request, frame)
                    if eager and running.plain is not None:
                        running.plain.learn(running._know(frame.head).rights.entry)

                running.call = counted  # type: ignore[method-assign]
                if in_c:
                    plain_calls.prepare()
                    running.plain = plain_calls.PlainCalls(
                        theirs, reader, words, mark, cache, running.ends, running.rights, counted
                    )
                running.run()
                cache.keep([])
        except BaseException as error:
            failed.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        made.send(frames.pack_json(0, frames.RELEASE, frames.Load(SERIAL, release)))
        assert made.answer().kind == frames.LOADED
        yield made
    finally:
        ours.close()
        thread.join(scaled(DEADLINE))
        host().wasi.copy = None
        if failed:
            # Why the block failed, if it did.
            raise failed[0]
    assert not thread.is_alive()
