"""The messages between the front and its children (workers, appliers, compilers, checkpointers), and their encoding.

A message is a frame: a header of 12 bytes (length of the rest, request id, kind, length of the head), a head and raw
bytes. The head of a call is described in `request_head`; a message named here in backquotes is JSON in the raw bytes.
Each child has one SOCK_STREAM socketpair with the front.
"""

import socket
import struct
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from control.protocol import wire
from control.protocol.manifest import Manifest
from edge_runtime.errors import known

HEADER: Final = struct.Struct("<IIHH")
HEADER_BYTES: Final = HEADER.size
_pack, _unpack = HEADER.pack, HEADER.unpack_from
HEAD_LIMIT: Final = 65_535
"""Bytes that a head may have, as its length in the header is 16 bits wide."""

# To a worker
CALL: Final = 1
"""Head: see `request_head`; the raw bytes are the request's body."""
RELEASE: Final = 2
"""`Load`: be ready to serve these functions too; answered by LOADED. Functions whose earlier version is loaded, and a
few new ones, are loaded immediately, others when they are called."""
FORGET: Final = 3
"""`Keep`: unload the functions of the other serials; answered by DONE."""
QUERY_RELEASE: Final = 4
"""Tell which release the libsql file holds; answered by RELEASE_IS (`Stored`) or FAILED."""
CALL_TIMED: Final = 18
"""Like CALL, but the front wants to know where the time goes: TIMES comes before the answer."""
CALL_TICK: Final = 50
"""Like CALL, for a call that a tick makes: if the function may write, its transaction notes the tick as done."""
TICKS: Final = 51
"""`TickNotes`: note ticks that have ended, and tell which the libsql file knows; answered by TICKED (`StoredTicks`)."""
PRELOAD: Final = 19
"""`Preload`, to a spare worker; answered by DONE, or by DAMAGED if the function is now interpreted."""
# To a repeater
REPEAT: Final = 42
"""`Repeat`: repeat a call that trapped; answered by REPEATED."""
# To an applier
APPLY: Final = 5
"""`Apply`: prepare a release in a transaction; answered by PREPARED (`wire.Inventory`: the result) or FAILED, after
APPLYING for each statement."""
COMMIT: Final = 6
"""Commit the prepared release; answered by COMMITTED or FAILED."""
ABORT: Final = 7
"""Roll back the prepared release; answered by ABORTED."""
COUNT: Final = 15
"""Count the rows of the tables; answered by COUNTED (`Counted`)."""
ADVANCE: Final = 17
"""`Advance`: run the steps that come before a schema change's flip; answered by DONE or FAILED, after occasional
APPLYING frames."""
FINISH: Final = 16
"""Run the steps that come after the flips of schema changes; answered like ADVANCE."""
TRY: Final = 13
"""`Try`; answered by TRIED (`Tried`) for each function in order, until one FAILED."""
# To a compiler
COMPILE: Final = 8
"""`Compile`; answered by COMPILED (`Compiled`) or FAILED."""
SPLIT: Final = 47
"""`SplitOrder`; answered by SPLIT_UP (`SplitUp`) or FAILED."""
VERIFY: Final = 14
"""`Verify`; answered by VERIFIED (`Verified`)."""
# To a worker, in the middle of a call
HTTP_ANSWER: Final = 9
"""The answer to an HTTP frame of the same request: the raw bytes are its parcel (`http_messages`)."""

# To a checkpointer
CHECKPOINT: Final = 10
"""`Checkpoint`; answered by CHECKPOINTED (`Checkpointed`) or FAILED."""
SETTLE: Final = 11
"""Undo the remains of a process that was killed in a COMMIT; answered by DONE or FAILED."""
CLOSE: Final = 12
"""Close the file and exit; answered by DONE."""
SHIP: Final = 45
"""`Ship`: put what was committed into files of the backup; answered by SHIPPED (`Shipped`) or FAILED."""

# From a child. A kind of 200 or more is the HTTP status of a guest's answer: the head is its header lines as they are
# sent (`name: value`, each ended by CR LF; none about the connection, or about the length if there is a body), and the
# raw bytes are the body.
READY: Final = 20
"""The child is ready (with the id of no request); a worker that can't open the libsql file sends FAILED and exits."""
FAULT: Final = 21
"""`Fault`: the call ended without an answer from its guest; nothing that it wrote was kept."""
STALE: Final = 22
"""The libsql file holds a different release than the call was made for: the call has done nothing that lasts, and must
be dispatched again."""
HELD: Final = 38
"""The call would write while a release is applied: it has done nothing that lasts, and must be dispatched again once
the release is there or has failed."""
LOADED: Final = 23
"""`Loaded`."""
FAILED: Final = 24
"""`ChildFailure`."""
DONE: Final = 25
RELEASE_IS: Final = 26
PREPARED: Final = 27
COMMITTED: Final = 28
ABORTED: Final = 29
COMPILED: Final = 30
SPLIT_UP: Final = 48
REPEATED: Final = 43
LOG: Final = 31
"""The output of the call's guest to its log, as raw bytes; comes before the answer."""
HTTP: Final = 32
"""The call's guest asks for an HTTP request: its parcel (`http_messages`) as raw bytes. Answered by HTTP_ANSWER."""
DENIED: Final = 33
"""What the call's grants denied it: a JSON object of counts by kind, as raw bytes; comes before the answer."""
TIMES: Final = 41
"""Where the call's time went: `call_times.CallTimes` in msgpack; comes before the answer of a call that was slow or
failed, or that the front asked about."""
CHECKPOINTED: Final = 34
SHIPPED: Final = 46
DAMAGED: Final = 37
"""The function's compiled code is damaged, and it runs on the interpreter; comes before the call's answer."""
NEWLY_LOADED: Final = 44
"""The worker has loaded the call's function, which none of its calls had needed before; comes before the call's
answer."""
TICKED: Final = 52
TRIED: Final = 35
VERIFIED: Final = 36
COUNTED: Final = 40
APPLYING: Final = 39
"""What the applier is about to do, in words, as raw bytes; comes before the answer to APPLY, any number of times."""
FIRST_STATUS: Final = 200

FAULT_TEXT: Final = 16_384
"""Characters of a fault's message."""
FAILURE_TEXT: Final = 10_000
"""Characters that are read of a failure's message."""
TRAP_PLACE: Final = 300
"""The most characters of the place where a call trapped."""
COMMIT_UNKNOWN: Final = "commit_unknown"
"""Code of a failed COMMIT if it can't be ensured that nothing of it is kept."""


class LocalFunction(Struct, frozen=True):
    """A version of a function on this node, with the code that it runs; without code if `aot` and `wasm` are empty, or
    `aot` alone where there is an `image`."""

    name: str
    version: int
    sha256: str
    manifest: Manifest
    manifest_digest: str
    aot: str = ""
    """Path of the AOT file."""
    aot_digest: str = ""
    """sha256 of the AOT file in hex, which is checked before each load."""
    wasm: str = ""
    """Path of the artifact, which the interpreter runs if `aot` is empty or damaged. It never runs a snapshot that is
    split: if there is an `image`, `aot` is the only code, and empty until the engine is compiled."""
    image: str = ""
    """Path of the image file of a snapshot, whose AOT file is then its engine's; empty for any other module."""
    image_digest: str = ""
    """sha256 of the image file in hex, which is checked before each mapping."""
    image_pages: int = 0
    """Pages of 64 KiB that the image has: those that the snapshot's memory starts with."""
    mended: int = 0
    """How often a snapshot's files were found damaged and made again since the node's start. What has a damaged one
    mapped loads it anew."""

    @property
    def code(self) -> tuple[str, str]:
        """Path and sha256 of the file to load; an empty path if there is none."""
        return (self.aot, self.aot_digest) if self.aot or self.image else (self.wasm, self.sha256)


class LocalRelease(Struct, frozen=True):
    """A release as this node has it."""

    release_id: str
    number: int
    generation: int
    schema_version: int
    functions: list[LocalFunction]


class Load(Struct, frozen=True):
    """A set of modules that a worker is to be ready to serve."""

    serial: int
    """The front's number for this set of modules: a release gets a new one when its AOT files get better."""
    release: LocalRelease
    secrets: dict[str, dict[str, str]] = {}
    """By function: the values of the secrets that its manifest names. Only `Load`, `Apply`, `Advance`, `Try`
    and `Repeat` have them."""
    lacking: dict[str, "ChildFailure"] = {}
    """By function: why it can't be called although its module is there."""

    def __repr__(self) -> str:
        return f"Load({self.serial}, {self.release!r})"


class Preload(Struct, frozen=True):
    """A function that a spare worker is to load before it takes the place of another one."""

    serial: int
    """The front's number for the set of modules that has the function."""
    function: int
    """The function's place in it."""


class Keep(Struct, frozen=True):
    """The serials of the sets of modules that a worker is to keep."""

    serials: list[int]


class Stored(Struct, frozen=True):
    """What the libsql file holds: the release (functions without code; None before the first) and the inventory."""

    release: LocalRelease | None
    inventory: wire.Inventory
    durable: bool = True
    """Whether all of it is on disk, so that a loss of power changes nothing."""
    unfinished: bool = False
    """Whether there are steps of schema changes that come after their flips."""


class TickNote(Struct, frozen=True):
    """A tick that has ended, and that no function's transaction has noted."""

    function: str
    cron: str
    tick: int
    done: bool
    """Whether it ended well."""


class TickNotes(Struct, frozen=True):
    notes: list[TickNote]


UnixSeconds = Annotated[int, Meta(ge=0, le=253_402_300_799)]
"""Up to the year 9999."""


class StoredTick(Struct, frozen=True):
    """A tick that the libsql file knows."""

    function: str
    cron: str
    """Empty for the call that follows a release."""
    tick: UnixSeconds
    state: Literal["since", "due", "done", "failed"]
    """`since`: no tick, but when the release came that brought the line; `due`: a release's call that hasn't ended."""
    at: UnixSeconds
    """When the row was written."""


class StoredTicks(Struct, frozen=True):
    ticks: list[StoredTick]
    noted: bool
    """Whether the notes are in the file."""


class Apply(Struct, frozen=True):
    """A release to be prepared."""

    plan: wire.Plan
    functions: list[LocalFunction]
    """All functions of the release, with the code that probes run."""
    secrets: dict[str, dict[str, str]] = {}
    """The secrets as in `Load`, for the probes."""
    afresh: bool = False
    """The libsql file's own record of its release must not be trusted."""
    at: float = 0.0
    """The time of day, in Unix seconds: since then the lines of schedules count that the release brings."""

    def __repr__(self) -> str:
        return f"Apply({self.plan.sync_id}, release {self.plan.release_number})"


class Advance(Struct, frozen=True):
    """A plan whose first schema change has steps that run before its flip."""

    plan: wire.Plan
    generation: int
    """The serving release's generation."""
    serving: list[LocalFunction] = []
    """Its functions, whose probes must pass after each step in a single transaction."""
    secrets: dict[str, dict[str, str]] = {}
    """The secrets as in `Load`, for the probes."""

    def __repr__(self) -> str:
        return f"Advance({self.plan.sync_id}, release {self.plan.release_number})"


class Checkpoint(Struct, frozen=True):
    mode: Literal["passive", "restart", "truncate"]
    """SQLite's mode of a checkpoint; for all but `passive` the writer lock is taken."""
    patience_ms: int = 0
    """Milliseconds to wait for readers while the writer lock is held."""
    unshipped: bool = False
    """Move also what can't be put into files of the backup, which then goes on with a snapshot."""


class Checkpointed(Struct, frozen=True):
    busy: bool
    """Whether readers, or frames that came meanwhile, keep the log from restarting."""


class Ship(Struct, frozen=True):
    """The database is backed up, from now on if it wasn't."""

    afresh: bool = False
    """Begin another history, and drop the files of the one of now that aren't at the store."""
    boundary: bool = False
    """A release is about to begin: what is shipped stays apart from what follows, and no snapshot is made."""


class Shipped(Struct, frozen=True):
    """How far the backup of the database has come, on the node's disk."""

    lineage: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]
    last: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    """The last transaction that is in a file."""
    at_ms: Annotated[int, Meta(ge=0)]
    """Unix milliseconds: the database had nothing newer then."""
    pending: Annotated[int, Meta(ge=0)]
    """Bytes of the files that aren't at the store yet."""
    error: Annotated[str, Meta(max_length=FAILURE_TEXT)] = ""
    """Which part of the history was lost, and why; '' once the snapshot that follows it is at the store."""
    whole: bool = True
    """Whether everything that was committed is in files; if not, a snapshot follows later."""


class Counted(Struct, frozen=True):
    """About how many rows tables have, by their names in lower case."""

    counts: dict[str, int]
    """Rows as far as they were counted (`sql.schema.MOST_ROWS`)."""
    estimates: dict[str, int] = {}
    """Estimates for tables that have more, from their keys."""


class Try(Struct, frozen=True):
    """Functions to be loaded on trial."""

    functions: list[LocalFunction]
    secrets: dict[str, dict[str, str]] = {}
    """The secrets as in `Load`."""

    def __repr__(self) -> str:
        return f"Try({self.functions!r})"


class Tried(Struct, frozen=True):
    bytes: int
    """Bytes of memory that the function takes while it runs, in addition to its guest's memory."""


class Compile(Struct, frozen=True):
    """An artifact to be compiled."""

    artifact: str
    """Path of the wasm."""
    sha256: str
    folder: str
    """Path of the compiler's private folder, which it creates: its files go there."""
    level: int
    """The level of optimization, as in `aot_cache`."""


class Compiled(Struct, frozen=True):
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """sha256 of the AOT file in hex."""


class SplitOrder(Struct, frozen=True):
    """An artifact to be split into its engine and its memory's image, if it is a snapshot."""

    artifact: str
    """Path of the wasm."""
    sha256: str
    folder: str
    """As in `Compile`."""


class SplitUp(Struct, frozen=True):
    """What was made of it, as in `aot_cache.SplitRecord`; all empty if the artifact stays whole."""

    engine: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    digest: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    pages: Annotated[int, Meta(ge=0, le=65536)] = 0


class Verify(Struct, frozen=True):
    """Files to be checked."""

    files: list[tuple[str, str]]
    """Path of each file, and the sha256 that it must have."""


class Verified(Struct, frozen=True):
    damaged: list[str]
    """Paths of the files that can't be read, or have another sha256."""


class Repeat(Struct, frozen=True):
    """A call that trapped, of a function without grants."""

    function: LocalFunction
    head: bytes
    """As in the call's frame (`request_head`)."""
    body: bytes
    secrets: dict[str, str]
    """The values of the secrets that the function's manifest names."""

    def __repr__(self) -> str:
        return f"Repeat({self.function!r})"


class Repeated(Struct, frozen=True):
    place: Annotated[str, Meta(max_length=TRAP_PLACE)]
    """The function of the module in which it trapped, in words; empty if it didn't trap or that isn't known."""


class ChildFailure(Struct, frozen=True):
    code: str
    message: str


class Loaded(Struct, frozen=True):
    failures: list[ChildFailure]
    """One failure for each function that couldn't be loaded; the others can be called."""


class Fault(Struct, frozen=True):
    code: Annotated[str, Meta(max_length=64)]
    message: Annotated[str, Meta(max_length=FAULT_TEXT)]
    status: Annotated[int, Meta(ge=400, le=599)]


class ChildSettings(Struct, frozen=True):
    """Settings that all children need."""

    state: str
    """Path of the state directory."""
    synchronous: str
    """SQLite's setting: FULL or NORMAL."""
    temp_limit: int = 1024**3
    """Bytes of a file that a worker may write."""
    fence: str = "required"
    """required: children must have every part of their fence; partial: they have the parts that the machine
    supports."""
    code_memory: int = 256 * 1024 * 1024
    """Bytes that a worker's loaded functions may take, together with everything else that it has allocated."""
    wal_limit: int = 256 * 1024 * 1024
    """Bytes of the write-ahead log from which on nothing more should be written to it."""
    backup_limit: int = 4 * 1024**3
    """Bytes that files of the backup may take that aren't at the store yet."""


class ChildGone(ConnectionError):
    """The other side closed the socket in the middle of a frame or before it answered, or its answer isn't valid."""


_T = TypeVar("_T")

encode_json: Final = msgspec.json.encode
_decode_failure: Final = msgspec.json.Decoder(ChildFailure).decode


def told_failure(failure: ChildFailure) -> ChildFailure:
    """Return a failure that a child reported, limited to valid values: the child may have been taken over."""
    return ChildFailure(known(failure.code), failure.message[:FAILURE_TEXT])


def decode_failure(body: bytes) -> ChildFailure:
    """Decode a child's failure and return it as `told_failure` does."""
    try:
        failure = _decode_failure(body)
    except Exception:
        return ChildFailure("internal", "It said what can't be read.")
    return told_failure(failure)


def pack(request: int, kind: int, head: bytes = b"", body: bytes = b"") -> bytes:
    """Return a whole frame; for small bodies, which are copied."""
    return HEADER.pack(len(head) + len(body), request, kind, len(head)) + head + body


def pack_json(request: int, kind: int, value: Any) -> bytes:
    """Return a frame with `value` in its raw bytes as JSON."""
    return pack(request, kind, b"", encode_json(value))


class Frame(Struct, frozen=True):
    request: int
    kind: int
    head: bytes
    body: bytes


def told(answer: Frame, kind: int, decode: Callable[[bytes], _T]) -> _T:
    """Return the content of a child's answer, which must be of this kind.

    Raises: ChildGone, when no honest child would send this answer. The child may have been taken over: its task is as
    lost as if it had exited.
    """
    if answer.kind != kind:
        raise ChildGone(f"it gave an answer of kind {answer.kind}, and not {kind}")
    try:
        return decode(answer.body)
    except Exception as error:
        text = f"it gave an answer of {len(answer.body)} bytes that can't be read: {str(error)[:200]}"
        raise ChildGone(text) from None


def unpack(frame: bytes) -> Frame:
    """Return the frame encoded in these bytes."""
    _, request, kind, head = _unpack(frame)
    split = HEADER_BYTES + head
    return Frame(request, kind, frame[HEADER_BYTES:split], frame[split:])


def send(
    sock: socket.socket, request: int, kind: int, head: bytes = b"", body: bytes = b"", before: bytes = b""
) -> None:
    """Send a frame on a blocking socket; a large body isn't copied. `before`: whole frames that go out before it, in
    the same write."""
    header = before + _pack(len(head) + len(body), request, kind, len(head))
    if len(body) < 65_536:
        sock.sendall(b"".join((header, head, body)))
    else:
        sock.sendall(header + head)
        sock.sendall(body)


def send_json(sock: socket.socket, request: int, kind: int, value: Any, before: bytes = b"") -> None:
    send(sock, request, kind, b"", encode_json(value), before)
