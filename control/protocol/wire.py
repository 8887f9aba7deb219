"""The messages between control, its nodes and its operators, and the digest of what a node runs.

It imports nothing else of the project, since both packages share it. Messages of nodes may have unknown fields, so that
an older control and a newer edge work together, and vice versa; operators' bodies may not. Times are RFC 3339 in UTC,
durations are in seconds unless a name says otherwise, sizes are in bytes.
"""

import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

import msgspec
import orjson
from msgspec import Meta, Struct

PROTOCOL = 4
"""Version of the nodes' protocol. A node sends its version, and control answers with messages that the node knows."""
WATCH_PROTOCOL = 2
"""The first version whose nodes know `Watch`. A node of version 1 sends no version."""
REHEARSAL_PROTOCOL = 3
"""The first version whose nodes know `Rehearse`."""
BACKUP_PROTOCOL = 4
"""The first version whose nodes know `BackUp` and `Restore`."""
LINES_OF_CALL = 20
"""The most lines of its log that a node sends with the record of a call."""

MIB = 1024 * 1024
MOST_FUNCTIONS, MOST_CHANGES = 1000, 10_000  # of a release; of the schema, since a node reports all that it applied

# A Python pattern's $ also matches before a line break at the end, hence the look-ahead.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]
"""Names of nodes, groups and functions: at most 63 lower-case letters, digits and hyphens."""
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)")]
LabelKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$(?!\n)")]
"""At most 63 letters and digits, with . _ / - between them."""
LabelValue = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)")]
"""A line of text."""
Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Generation = Annotated[int, Meta(ge=0, le=2**62)]
Text = Annotated[str, Meta(max_length=2000)]

Count = Annotated[int, Meta(ge=0, le=2**53)]

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

OUTCOMES = (
    *("other", "answer_5xx", "guest_trap", "guest_exit", "guest_error", "entry_unknown", "guest_http_failed"),
    *("guest_vars_full", "guest_memory_full", "guest_response_invalid", "guest_call_invalid", "guest_unlinkable"),
    *("worker_crashed", "time_limit", "lock_held_too_long", "writer_busy", "memory_limit", "response_too_large"),
    *("commit_unknown", "commit_failed", "transaction_ended", "constraint_unique", "constraint_check"),
    *("constraint_not_null", "constraint_foreign_key", "database_held", "database_busy", "sql_out_of_memory"),
    *("sql_disk_limit", "sql_request_too_large", "sql_too_many_rows", "sql_answer_too_large", "disk_full"),
    *("disk_failed", "secret_missing", "secrets_unfit", "function_uncompiled", "function_unloadable"),
    *("request_unfit", "head_too_large", "queue_full", "queue_timeout", "circuit_open", "wal_full"),
    *("release_changing", "release_changed", "node_stopping", "client_gone", "internal", "function_unknown"),
    "tick_done",
)
"""How a call can end other than "ok", by its number in `FunctionNumbers`: the node's error codes, `answer_5xx` (its
function answered with a status of 500 or more), and the rest. New entries are only added at the end."""
EventKind = Literal[
    "node.offline",
    "node.online",
    "node.overdue",
    "node.caught_up",
    "sync.failed",
    "release.arrived",
    "release.failed",
    "rollout.paused",
    "rollout.ended",
    "operator.acted",
    "webhook.test",
]
"""An event's type, the `type` of webhook messages. docs/how-to/send-events.md explains each."""
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


Lineage = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]
"""The random id of one unbroken history of one database on one disk. A node makes it when it begins to back up a
database, and another one for another disk, a restored database, and a copy."""
NO_LINEAGE = "0" * 32
"""What a node says that has begun none yet."""
Transaction = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A place in such a history: the number of a shipment, from 1 on; 0 before the first."""
MOST_LINES = 100
"""The most lines of schedules of which a node tells."""
MOST_UPLOADS = 64
"""The most files for which a node asks for URLs at once."""


class Message(Struct, omit_defaults=True):
    """A node's message, or control's to a node: unknown fields are ignored."""


class Body(Struct, forbid_unknown_fields=True, frozen=True):
    """An operator's request: unknown fields are refused."""


class Join(Message):
    """``POST /v1/nodes``, authenticated by a one-time join token."""

    name: Name
    attempt: Uuid
    """Random; repeating the same attempt before the credential was used returns a replacement."""
    labels: dict[str, str] = {}
    capabilities: dict[str, Any] = {}
    """What the node can run; a release's needs are compared with `abi` and with `manifest`, whose fields it lists."""
    protocol: Number = 1


class Joined(Message):
    node_id: str
    credential: str
    group: str
    credential_life: float = 0.0
    """Seconds from now until the credential ends; 0 if control doesn't say."""


class AppliedChange(Message):
    number: Number
    revision: Number
    checksum: Sha256


class RunningFunction(Message):
    name: Name
    version: Number
    sha256: Sha256
    manifest_digest: Sha256


class Inventory(Message):
    """What a node runs: the release that its libsql file holds."""

    schema_version: Annotated[int, Meta(ge=0)] = 0
    schema_changes: Annotated[list[AppliedChange], Meta(max_length=MOST_CHANGES)] = []
    """Every applied change, in order."""
    functions: Annotated[list[RunningFunction], Meta(max_length=MOST_FUNCTIONS)] = []
    database_id: str = ""
    """The id of the libsql file: a different id means that the node's disk was lost or replaced."""


class FailedGeneration(Message):
    """The generation that the node failed to reach, and when it will try again by itself."""

    generation: Generation
    retry_at: datetime


class Poll(Message):
    """``POST /v1/poll``: asks whether there is something to do. It is also the heartbeat."""

    generation: Generation
    """The generation of the plan that the node last completed; 0 before the first."""
    digest: Sha256
    boot_id: Annotated[str, Meta(max_length=64)] = ""
    wait: Annotated[float, Meta(ge=0, le=60)] = 0.0
    """How long control may hold the poll while there is nothing to do; at most 25 s."""
    failed: FailedGeneration | None = None
    inventory: Inventory | None = None
    """Sent when control has asked for it by `Report`."""
    capabilities_digest: Annotated[str, Meta(max_length=64)] = ""
    """Changes with the capabilities and the protocol; control only compares it."""
    capabilities: dict[str, Any] | None = None
    """Sent with `inventory`; as in `Join`."""
    protocol: Number = 1
    watching: Annotated[str, Meta(max_length=64)] = ""
    """The digest of the last `Watch`; '' if, as far as the node knows, nobody watches it."""
    name: Annotated[str, Meta(max_length=63)] = ""
    """The node's name, as far as it knows; if control has another name, the answer is `Renamed`."""
    rehearsal: Annotated[str, Meta(max_length=64)] = ""
    """The id of the last `Rehearse` that the node has taken up; '' if it has taken up none since its start."""
    numbers: bytes = b""
    """What was counted since the previous numbers: `Numbers` in msgpack, or empty."""
    backup: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """The interval in seconds of the last `BackUp` that the node has taken up; 0 if it backs nothing up."""
    restore: Annotated[str, Meta(max_length=64)] = ""
    """The id of the last `Restore` that the node has taken up since its start; '' if none."""


class FunctionNumbers(Struct, array_like=True):
    """How calls of one function of one release ended, and how long they took; at most 48 bytes."""

    index: Annotated[int, Meta(ge=0, lt=MOST_FUNCTIONS)]
    """The function's place in its release, whose functions are sorted by name."""
    release: Number
    """Number of the release."""
    outcomes: Annotated[list[Count], Meta(max_length=2 * len(OUTCOMES))]
    """Pairs of an index in `OUTCOMES` and the number of calls with that outcome; successful calls aren't included."""
    seconds: Annotated[bytes, Meta(max_length=64)]
    """The times of all calls from arrival to end (`histogram.pack`); the sum of its counts is the number of calls."""


class BackupState(Struct, array_like=True):
    """How far the backup of the node's database has come."""

    lineage: Lineage
    reached: Transaction = 0
    """The last transaction of which the store has all."""
    reached_at: Count = 0
    """Unix seconds when the database had nothing newer than that: a lost disk loses what was written since."""
    pending: Count = 0
    """Bytes that wait on the node's disk."""
    error: Annotated[str, Meta(max_length=500)] = ""
    """Why it doesn't go on, or which history was given up; '' if all is well."""


class LineNumbers(Struct, array_like=True):
    """What a node knows of a line of a function's schedule, or of its calls after releases; times are Unix seconds."""

    function: Name
    cron: Annotated[str, Meta(max_length=100)] = ""
    """Empty for calls after releases."""
    last_run: Count = 0
    """When the last run began; 0 if there was none."""
    last_status: Annotated[str, Meta(max_length=64)] = ""
    """How it ended: `ok`, `answer_404`, or an error's code; '' if there was none."""
    next_run: Count = 0
    """When the next one is due; 0 if that isn't known."""
    late: Count = 0
    """Seconds by which the tick is late that waits, or by which the last run was."""
    failures: Count = 0
    """Ticks that failed since the node's start."""


class NodeNumbers(Struct, array_like=True):
    """The state of the node itself: current values, and from `worker_deaths` on, counts since the previous numbers."""

    database: Count = 0
    """Bytes of the database file."""
    wal: Count = 0
    """Bytes of its write-ahead log."""
    disk_free: Count = 0
    """Bytes that are free on the database's disk."""
    memory: Count = 0
    """Bytes of memory of all the node's processes, with shared memory counted once."""
    certificate_ends: Count = 0
    """Unix seconds when the certificate of its local HTTPS ends; 0 if it has none."""
    credential_ends: Count = 0
    """Unix seconds when its credential ends; 0 if unknown."""
    edge: Annotated[str, Meta(max_length=32)] = ""
    """Version of the node's software."""
    worker_deaths: Count = 0
    """Workers that exited."""
    log_dropped: Count = 0
    """Lines of its log that were dropped."""
    failed_syncs: Count = 0
    """Syncs that failed."""
    trust: Annotated[str, Meta(max_length=16)] = ""
    """The CAs by which it trusts control: the digest that control sends with polls, or `system` for its system's CAs;
    '' from a version that doesn't say."""
    trust_ends: Count = 0
    """Unix seconds when the last of these CAs ends; 0 if unknown."""
    backup: BackupState | None = None
    """None if the node backs nothing up."""
    schedules: Annotated[list[LineNumbers], Meta(max_length=MOST_LINES)] = []
    """The lines of its functions' schedules; of too many, those that failed and those that are the latest."""


class Numbers(Struct, array_like=True):
    """What a node counted in an interval, sent with polls until one is answered; the next has the next sequence."""

    sequence: Count
    """Grows from one to the next within one `Poll.boot_id`; a repeated one must be counted only once."""
    seconds: Annotated[float, Meta(ge=0, le=2**31)]
    """How long the interval was."""
    functions: Annotated[list[FunctionNumbers], Meta(max_length=2 * MOST_FUNCTIONS)]
    """Only functions that were called."""
    node: NodeNumbers | None = None
    """About once a minute."""


class PlannedChange(Message):
    number: Number
    revision: Number
    name: str
    checksum: Sha256
    sql: str


class PlannedFunction(Message):
    name: Name
    version: Number
    sha256: Sha256
    size: int
    url: str
    """Presigned, or relative to control if the store is private; `GET /v1/artifacts/{sha256}` returns fresh ones."""
    manifest: dict[str, Any]
    """As control stores it; a node that doesn't know one of its fields fails the sync and reports that."""
    manifest_digest: Sha256


class Plan(Message, tag="plan"):
    """Everything that a node needs to go to its target, in one answer (R 3.3, 4.1)."""

    sync_id: str
    lease: float
    """Seconds until the sync expires unless renewed by a `running` report."""
    generation: Generation
    release_id: str
    release_number: int
    schema_floor: int
    schema_changes: list[PlannedChange] = []
    """The changes to apply, in order: those after the node's schema version, up to the floor."""
    functions: list[PlannedFunction] = []
    """All functions of the release, including those that the node already has."""
    remove: list[str] = []
    """Names that the node runs and the release lacks."""
    traceparent: str = ""
    """The span of this sync, if it is traced; the node sends it with its reports about the sync (W3C Trace Context)."""


class Report(Message, tag="report"):
    """Control doesn't know one of the digests: poll again with inventory and capabilities."""


class Renamed(Message, tag="renamed"):
    """An operator has given the node this name. Continue polling with it."""

    name: Name


class Rehearse(Message, tag="rehearse"):
    """The node's group has a release to rehearse: get ``/v1/nodes/self/rehearsals/{id}``, and go on polling."""

    id: Annotated[str, Meta(max_length=64)]
    """Empty: there is none now. A node that is still at one asks for its order again, and gives it up if that is
    refused: the rollout may also be paused, and then a result still counts."""


class RehearsalOrder(Message):
    """``GET /v1/nodes/self/rehearsals/{id}``: what a node tries on a copy of its own data, while it serves."""

    plan: Plan
    """As the release's plan would be. Its `sync_id` is the rehearsal's id; no sync is open, and nothing is flipped."""
    seconds: float
    """How long it may take, from the answer to the report."""


class RehearsedChange(Message):
    """What a schema change did to the copy."""

    number: Number
    name: Annotated[str, Meta(max_length=200)] = ""
    rows: Count = 0
    """Rows that it wrote."""
    seconds: Annotated[float, Meta(ge=0)] = 0.0
    """How long it took, at the lowest priority."""
    stall: Annotated[float, Meta(ge=0)] = 0.0
    """The longest time in seconds that writers must expect to wait because of it: the upper end of an estimate."""


class RehearsalResult(Message):
    """``PUT /v1/nodes/self/rehearsals/{id}``: how it went. `unknown` if the node couldn't try."""

    outcome: Literal["passed", "failed", "unknown"]
    code: Annotated[str, Meta(max_length=64)] = ""
    message: Text = ""
    """Why it didn't pass, without contents of rows."""
    row: Annotated[str, Meta(max_length=300)] = ""
    """The row that made a schema change fail, as `table key=value`, where that is known; its key only."""
    changes: Annotated[list[RehearsedChange], Meta(max_length=MOST_CHANGES)] = []
    schema_digest: Annotated[str, Meta(max_length=64)] = ""
    """sha256 of the schema that resulted, the same on all nodes with the same schema; '' if it didn't get that far."""
    seconds: Annotated[float, Meta(ge=0)] = 0.0
    """How long the rehearsal took, with the copy."""
    database: Count = 0
    """Bytes of the copy."""


class BackUp(Message, tag="back_up"):
    """From now on the node's database is backed up like this."""

    interval: Annotated[float, Meta(ge=0, le=86_400)]
    """Seconds between two uploads while somebody writes; 0 to end the backup."""


class BackupPosition(Message):
    """A place in the history of a node's database."""

    lineage: Lineage
    transaction: Transaction


class UploadsWanted(Message):
    """``POST /v1/nodes/self/backup/uploads``: asks for URLs at which files of the backup may be put, once each."""

    lineage: Lineage
    names: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(min_length=1, max_length=MOST_UPLOADS)]
    """Of each file its level, a slash and its name (`ltx.name`): `0/…` what was written, `9/…` a snapshot."""


class Uploads(Message):
    """The answer to `UploadsWanted`."""

    urls: list[str]
    """Presigned for PUT with the header `If-None-Match: *`, or relative to control if the store is private."""
    seconds: float
    """How long they are valid."""


class UploadedFile(Message):
    """``GET /v1/nodes/self/backup/uploads/{lineage}/{level}/{name}``: what the store has under that name."""

    size: int
    md5: str
    """In hexadecimal; '' if the store doesn't say it."""


class Restore(Message, tag="restore"):
    """The node's database is to be brought back: get ``/v1/nodes/self/restores/{id}``, and go on polling.

    A node that has done so, or has failed to, tells the result again.
    """

    id: Uuid


class RestoreFile(Message):
    """A file of a backup: the first one is a snapshot, and each other one follows the one before it."""

    name: str
    size: int
    url: str
    """Presigned, or relative to control if the store is private."""


class RestoreOrder(Message):
    """``GET /v1/nodes/self/restores/{id}``, and for a node that joins again ``GET /v1/nodes/self/backup/latest``."""

    position: BackupPosition
    """What the files come to."""
    at: datetime
    """When that was the state of the database, by the node's clock of then."""
    files: list[RestoreFile]


class RestoreResult(Message):
    """``PUT /v1/nodes/self/restores/{id}``: the node has the restored database, or the one that it had."""

    outcome: Literal["done", "failed"]
    code: Annotated[str, Meta(max_length=64)] = ""
    message: Text = ""
    """Why it failed; nothing was changed then."""
    release: Count = 0
    """The number of the release that the database has now; 0 for none."""
    release_id: Annotated[str, Meta(max_length=64)] = ""
    """The same release; '' for none."""
    kept: Text = ""
    """Where on the node the database of before is."""
    before: BackupPosition | None = None
    """What that one had come to, with all of it at the store; None if it wasn't backed up that far."""


class Question(Message):
    """What an operator wants to see of a node's records: new ones as they arrive, and those that exist.

    A node leaves out a question of a kind or level that it doesn't know.
    """

    id: str
    """The id of the watch, which never changes; the node sends it with the answers."""
    since: datetime
    """Records from this time on, by control's clock."""
    kind: str = "lines"
    """`lines` that functions and the node itself logged, `calls` that were slow or failed, or `functions`: the counts
    of each, once immediately and, with `follow`, every 5 s."""
    history: bool = False
    """Whether somebody waits for the end of the existing records: the node must then report it."""
    follow: bool = True
    """Whether later records are wanted too."""
    limit: int = 1000
    """The most existing records to send: the newest, or the slowest calls."""
    rate: float = 0.0
    """Records per second that the node may send at first; the answer to each batch updates it."""
    level: str = "debug"
    """The lowest level: `debug`, `info`, `warning` or `error`."""
    function: str = ""
    """Only this function's records; '' for all."""
    call: str = ""
    """Only the records of the call with this id; '' for all."""
    failed: bool = False
    """Only calls that failed."""
    slowest: bool = False
    """The slowest calls rather than the newest."""


class Watch(Message, tag="watch"):
    """The watches of the node have changed: `questions` are all current ones. Continue polling with this `digest`."""

    digest: str
    questions: list[Question] = []


class BatchTaken(Message):
    """The answer to a batch of records."""

    rate: float
    """Records per second that the node may send for this watch from now on."""


Answer = Plan | Report | Watch | Renamed | Rehearse | BackUp | Restore


class HourBefore(Struct, array_like=True):
    """A node's calls of the hour before it flipped to a release: what the release's own calls are compared with."""

    seconds: Annotated[float, Meta(ge=0, le=2**31)]
    """How long the time was; less than an hour after a start."""
    functions: Annotated[list[FunctionNumbers], Meta(max_length=2 * MOST_FUNCTIONS)]
    """Of whichever release they ran then: `FunctionNumbers.index` is the place in `names`."""
    names: Annotated[list[Name], Meta(max_length=2 * MOST_FUNCTIONS)]
    """The functions' names, each once."""


class SyncError(Message):
    code: Annotated[str, Meta(max_length=64)]
    message: Text


class SyncUpdate(Message):
    """``PUT /v1/syncs/{id}``."""

    status: Literal["running", "succeeded", "failed"]
    step: Annotated[str, Meta(max_length=64)] = ""
    error: SyncError | None = None
    retry_at: datetime | None = None
    """With `failed`: when the node will try this generation again by itself."""
    inventory: Inventory | None = None
    """With `succeeded` and `failed`: what the node now runs."""
    before: bytes = b""
    """With `succeeded`: `HourBefore` in msgpack, or empty."""
    boundary: BackupPosition | None = None
    """With `succeeded`: the last transaction before the release's, if the database is backed up."""


class SyncState(Message):
    status: str
    lease: float
    late: bool = False
    """The sync had ended before: the result was recorded as late."""


class Rotated(Message):
    credential: str
    credential_life: float = 0.0
    """As in `Joined`."""


class SqlRun(Message):
    """``POST /v1/nodes/self/sql``: SQL that somebody ran on the node; `rows` is None if the number isn't known."""

    id: Uuid
    at: datetime
    user: Text
    kind: Literal["read", "write"]
    statement: Annotated[str, Meta(max_length=8000)]
    reason: Text = ""
    rows: int | None = None


def canonical(value: object) -> bytes:
    """Return JSON with sorted keys and without spaces: equal values give equal bytes."""
    return orjson.dumps(msgspec.to_builtins(value), option=orjson.OPT_SORT_KEYS)


def schema_checksum(sql: str) -> str:
    """Return the sha256 of a schema change's text, as registered."""
    return hashlib.sha256(sql.encode()).hexdigest()


def digest(inventory: Inventory) -> str:
    """Return the sha256 over what a node runs: schema version, checksums of the applied changes, functions."""
    value = [
        inventory.schema_version,
        [[c.number, c.checksum] for c in inventory.schema_changes],
        sorted([f.name, f.version, f.sha256, f.manifest_digest] for f in inventory.functions),
        inventory.database_id,
    ]
    return hashlib.sha256(canonical(value)).hexdigest()


class Problem(Struct, omit_defaults=True):
    """An error as problem+json (RFC 9457). `code` is stable; docs/errors.md gives the cause and the fix of each."""

    code: str
    title: str
    status: int
    detail: str = ""
    field: str = ""
    call: str = ""
    """The id of the call that this answers: X-Request-Id."""
    type: str = "about:blank"
