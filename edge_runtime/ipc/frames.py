"""Frames between the front and its children (workers, the applier, compilers), and what their heads say.

A frame is a header of 12 bytes (length of the rest, request id, kind, length of the head), a head (msgpack where a
guest's request or answer is concerned, JSON elsewhere) and raw bytes. One SOCK_STREAM socketpair a child.
"""

import socket
import struct
from collections import deque
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from control import wire

HEADER: Final = struct.Struct("<IIHH")
HEADER_BYTES: Final = HEADER.size
_pack, _unpack = HEADER.pack, HEADER.unpack_from
_CHUNK: Final = 65_536
"""Bytes that are received at once."""
HEAD_LIMIT: Final = 65_535
"""Bytes of a head, which its length in the header can say; larger ones travel in the raw bytes."""

# To a worker
CALL: Final = 1
"""Head: `CallHead` in msgpack; the raw bytes are the request's body."""
RELEASE: Final = 2
"""`Load`: serve these functions too; loads those whose earlier version is loaded; answered by LOADED."""
FORGET: Final = 3
"""`Keep`: unload the functions of the other serials; answered by DONE."""
QUERY_RELEASE: Final = 4
"""Which release does the libsql file hold? Answered by RELEASE_IS (`Stored`) or FAILED."""
# To an applier
APPLY: Final = 5
"""`Apply`; answered by PREPARED (`wire.Inventory`: what the node will have) or FAILED."""
COMMIT: Final = 6
"""Answered by COMMITTED or FAILED."""
ABORT: Final = 7
"""Answered by ABORTED."""
# To a compiler
COMPILE: Final = 8
"""`Compile`; answered by COMPILED (`Compiled`) or FAILED."""
TRY: Final = 13
"""`Try`; answered by TRIED (`Tried`) for one function after the other, in their order, until one FAILED."""
VERIFY: Final = 14
"""`Verify`; answered by VERIFIED (`Verified`)."""
# To a worker, in the middle of a call
HTTP_ANSWER: Final = 9
"""To an HTTP of the same request: the raw bytes are the answer's parcel (`http_messages`)."""

# To a checkpointer
CHECKPOINT: Final = 10
"""`Checkpoint`; answered by CHECKPOINTED (`Checkpointed`) or FAILED."""
SETTLE: Final = 11
"""A process was killed in a COMMIT: undo what it left; answered by DONE or FAILED."""
CLOSE: Final = 12
"""Close the file and end; answered by DONE."""

# From a child. A kind of 100 or more is the HTTP status of a guest's answer: the head is its header lines as they go
# out (`name: value`, each ended by CR LF; none about the connection, or the length where there is a body), the raw
# bytes the body.
READY: Final = 20
"""Of no request; a worker that can't open the libsql file says FAILED instead, and ends."""
FAULT: Final = 21
"""`Fault`: the call ended without an answer of the guest's; nothing that it wrote was kept."""
STALE: Final = 22
"""The libsql file holds another release than the call was made for, or one is being applied for which it would have to
wait: nothing was run for good, dispatch it again."""
LOADED: Final = 23
"""`Loaded`."""
FAILED: Final = 24
"""`Failure`."""
DONE: Final = 25
RELEASE_IS: Final = 26
PREPARED: Final = 27
COMMITTED: Final = 28
ABORTED: Final = 29
COMPILED: Final = 30
LOG: Final = 31
"""What the guest of the call wrote to its log, as raw bytes; before its answer."""
HTTP: Final = 32
"""The guest of the call asks for an HTTP request: as raw bytes its parcel (`http_messages`). HTTP_ANSWER answers it."""
DENIED: Final = 33
"""Before a call's answer, where its grants denied it something: as raw bytes a JSON object, times by kind."""
CHECKPOINTED: Final = 34
DAMAGED: Final = 37
"""Before a call's answer, where the function's compiled code was damaged, and it runs on the interpreter."""
TRIED: Final = 35
VERIFIED: Final = 36
FIRST_STATUS: Final = 100

COMMIT_UNKNOWN: Final = "commit_unknown"
"""Code of a COMMIT that failed, where it can't be made sure that nothing of it is kept."""


class LocalFunction(Struct, frozen=True):
    """A function version as this node has it, and the code that it runs: none, as long as there is neither."""

    name: str
    version: int
    sha256: str
    manifest: wire.Manifest
    manifest_digest: str
    aot: str = ""
    """Path of the AOT file."""
    aot_digest: str = ""
    """sha256 of the AOT file, in hex; checked before each load."""
    wasm: str = ""
    """Path of the artifact, for the interpreter: where `aot` is empty, or damaged."""

    @property
    def code(self) -> tuple[str, str]:
        """Path and sha256 of what to load; an empty path where there is nothing."""
        return (self.aot, self.aot_digest) if self.aot else (self.wasm, self.sha256)


class LocalRelease(Struct, frozen=True):
    release_id: str
    number: int
    generation: int
    schema_version: int
    functions: list[LocalFunction]


class Load(Struct, frozen=True):
    serial: int
    """The front's own number for this set of modules: a release gets another one when its AOT files get better."""
    release: LocalRelease
    secrets: dict[str, dict[str, str]] = {}
    """By function: the values of its manifest's names. They are in no other message but `Apply`, and kept nowhere."""
    lacking: dict[str, "Failure"] = {}
    """By function: why it can't be called although its module is there."""

    def __repr__(self) -> str:
        return f"Load({self.serial}, {self.release!r})"


class Keep(Struct, frozen=True):
    serials: list[int]


class Stored(Struct, frozen=True):
    """What the libsql file says: the release (its functions without AOT; None before the first) and the inventory."""

    release: LocalRelease | None
    inventory: wire.Inventory
    durable: bool = True
    """A loss of power changes nothing of it."""


class Apply(Struct, frozen=True):
    plan: wire.Plan
    functions: list[LocalFunction]
    """All functions of the release, with the AOT files that probes run."""
    secrets: dict[str, dict[str, str]] = {}
    """As in `Load`: for the probes."""
    afresh: bool = False
    """The file's own record of a release isn't to be believed."""

    def __repr__(self) -> str:
        return f"Apply({self.plan.sync_id}, release {self.plan.release_number})"


class Compile(Struct, frozen=True):
    artifact: str
    """Path of the wasm."""
    sha256: str
    folder: str
    """Empty, and the compiler's alone: where its files go."""
    level: int


class Compiled(Struct, frozen=True):
    digest: str
    """As `LocalFunction.aot_digest`."""


class Checkpoint(Struct, frozen=True):
    mode: Literal["passive", "restart", "truncate"]
    """SQLite's; for all but `passive` the writer lock is taken."""
    patience_ms: int = 0
    """How long to wait for readers, while it is held."""


class Checkpointed(Struct, frozen=True):
    busy: bool
    """Readers, or frames that came meanwhile, keep the log from beginning anew."""
    frames: int
    """In the log."""
    backfilled: int
    """Of these, moved into the database file."""


class Try(Struct, frozen=True):
    functions: list[LocalFunction]
    secrets: dict[str, dict[str, str]] = {}
    """As in `Load`."""

    def __repr__(self) -> str:
        return f"Try({self.functions!r})"


class Tried(Struct, frozen=True):
    bytes: int
    """Memory that the function takes while it runs, besides its guest's."""


class Verify(Struct, frozen=True):
    files: list[tuple[str, str]]
    """Paths, and the sha256 that each must have."""


class Verified(Struct, frozen=True):
    damaged: list[str]
    """Paths of the files that can't be read, or have another sha256."""


class Failure(Struct, frozen=True):
    code: str
    message: str


class Loaded(Struct, frozen=True):
    failures: list[Failure]
    """One for each function that couldn't be loaded; the others can be called."""


class Fault(Struct, frozen=True):
    code: str
    message: str
    status: int
    log: str = ""
    """What the guest wrote to stderr."""


class ChildSettings(Struct, frozen=True):
    """What children need to know, the same for all of them."""

    state: str
    """Path of the state directory."""
    synchronous: str
    """SQLite's: FULL or NORMAL."""
    temp_limit: int = 1024**3
    """Bytes of a file that a worker may write."""
    fence: str = "required"
    """Whether children must have every piece of their fence, or only what the machine has: required or partial."""
    code_memory: int = 256 * 1024 * 1024
    """Bytes that a worker's loaded functions may take, with all else that it has allocated."""


class CallHead(Struct, frozen=True, array_like=True):
    """Everything of a request but its body, and what it calls."""

    serial: int
    function: int
    """Index in the release's functions."""
    method: str
    path: str
    """After the function's name, percent-encoded: empty or from a slash on."""
    query: bytes
    """As it came, without the question mark."""
    headers: list[tuple[bytes, bytes]]
    """Names in lower case, in their order."""
    client: str
    """Address of the caller."""
    script: str = ""
    """What comes before `path`: /functions/NAME, or a route's path up to its first parameter."""
    route: str = ""
    """The manifest's route that the call came by; empty where none."""
    params: list[tuple[str, str]] = []
    """The values of the route's parameters, percent-decoded (latin-1)."""


class ChildGone(ConnectionError):
    """The other side closed the socket in the middle of a frame, or before the answer."""


encode_json: Final = msgspec.json.encode
encode_head: Final = msgspec.msgpack.Encoder().encode
decode_call: Final = msgspec.msgpack.Decoder(CallHead).decode


def pack(request: int, kind: int, head: bytes = b"", body: bytes = b"") -> bytes:
    """A whole frame, for what is small."""
    return HEADER.pack(len(head) + len(body), request, kind, len(head)) + head + body


def pack_json(request: int, kind: int, value: Any) -> bytes:
    """A frame whose raw bytes are JSON: such a body may be longer than a head."""
    return pack(request, kind, b"", encode_json(value))


class Frame(Struct, frozen=True):
    request: int
    kind: int
    head: bytes
    body: bytes


class Reader:
    """Reads frames from a blocking socket: the children's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._receive = sock.recv
        self._pending = b""
        self._at = 0
        """How many bytes of `_pending` have been read."""
        self._kept: deque[Frame] = deque()
        """What came while an answer was waited for."""

    def answer(self, request: int, kind: int) -> bytes:
        """The raw bytes of the answer to something that this side asked for; other frames that come meanwhile are
        kept for `next`. Raises: ChildGone where the other side closes."""
        while (frame := self._read()) is not None:
            if frame.kind == kind and frame.request == request:
                return frame.body
            self._kept.append(frame)
        raise ChildGone("the front closed the socket before it had answered")

    def next(self) -> Frame | None:
        """The next frame, or None where the other side has closed. Raises: ChildGone in the middle of a frame."""
        return self._kept.popleft() if self._kept else self._read()

    def _read(self) -> Frame | None:
        while True:
            pending, at = self._pending, self._at
            have = len(pending) - at
            if have >= HEADER_BYTES:
                length, request, kind, head = _unpack(pending, at)
                start = at + HEADER_BYTES
                split, end = start + head, start + length
                if end <= len(pending):
                    self._at = end
                    return Frame(request, kind, pending[start:split], pending[split:end])
                if end - len(pending) > 65_536:
                    rest = bytearray(length)
                    rest[: have - HEADER_BYTES] = pending[start:]
                    self._fill(memoryview(rest)[have - HEADER_BYTES :])
                    self._pending, self._at = b"", 0
                    return Frame(request, kind, bytes(rest[:head]), bytes(rest[head:]))
            got = self._receive(_CHUNK)
            if not got:
                if have:
                    raise ChildGone("the front closed the socket in the middle of a frame")
                return None
            self._pending, self._at = (pending[at:] + got if have else got), 0

    def _fill(self, view: memoryview) -> None:
        while view:
            got = self._sock.recv_into(view)
            if not got:
                raise ChildGone("the front closed the socket in the middle of a frame")
            view = view[got:]


def send(sock: socket.socket, request: int, kind: int, head: bytes = b"", body: bytes = b"") -> None:
    """Send a frame on a blocking socket; a large body isn't copied first."""
    header = _pack(len(head) + len(body), request, kind, len(head))
    if len(body) < 65_536:
        sock.sendall(b"".join((header, head, body)))
    else:
        sock.sendall(header + head)
        sock.sendall(body)


def send_json(sock: socket.socket, request: int, kind: int, value: Any) -> None:
    send(sock, request, kind, b"", encode_json(value))
