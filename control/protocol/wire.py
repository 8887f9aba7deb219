"""The messages between control, its nodes and its operators, and the digest of what a node runs.

It imports no other module of the project, since both packages share it. Messages of nodes may have unknown fields, so
that an older control and a newer edge work together, and the other way round; operators' bodies may not. Times are RFC
3339 in UTC, durations are in seconds unless a name says otherwise, sizes are in bytes.
"""

import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

import msgspec
import orjson
from msgspec import Meta, Struct

PROTOCOL = 2
"""Version of the nodes' protocol. A node sends its version, and control answers with messages that it knows."""
WATCH_PROTOCOL = 2
"""The first version whose nodes know `Watch`. A node of version 1 sends no version."""
LINES_OF_CALL = 20
"""Lines of its log that a node sends with the record of a call, at most."""

MIB = 1024 * 1024
MOST_FUNCTIONS, MOST_CHANGES = 1000, 10_000  # of a release; of the schema, since a node reports all that it applied

# A Python pattern's $ also matches before a line break at the end, hence the look-ahead.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]
"""Names of nodes, groups and functions: lower case letters, digits and hyphens, 63 at most."""
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)")]
LabelKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$(?!\n)")]
"""Letters, digits and . _ / - between them, 63 at most."""
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
)
"""How a call can end but "ok", by its number in `FunctionNumbers`: the node's error codes, `answer_5xx` (its function
answered with a status of 500 or more), and whatever else there is. It only grows, at its end."""
EventKind = Literal[
    "node.offline",
    "node.online",
    "node.overdue",
    "node.caught_up",
    "sync.failed",
    "release.arrived",
    "release.failed",
    "operator.acted",
    "webhook.test",
]
"""Of an event, as messages of webhooks have it in `type`. docs/how-to/send-events.md says what each is."""
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


class Message(Struct, omit_defaults=True):
    """A node's message, or control's to a node: unknown fields are ignored."""


class Body(Struct, forbid_unknown_fields=True, frozen=True):
    """An operator's request: unknown fields are refused."""


class Join(Message):
    """``POST /v1/nodes``, authenticated by a one-time join token."""

    name: Name
    attempt: Uuid
    """Random; the same attempt again, before the credential was used, gives a replacement."""
    labels: dict[str, str] = {}
    capabilities: dict[str, Any] = {}
    """What the node can run; a release's needs are compared with `abi` and `manifest` (its fields)."""
    protocol: Number = 1


class Joined(Message):
    node_id: str
    credential: str
    group: str
    credential_life: float = 0.0
    """Seconds from now to the credential's end; 0 where control doesn't say."""


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
    """The id of the libsql file: another id means that the node's disk was lost or exchanged."""


class FailedGeneration(Message):
    """The generation that the node failed to reach, and when it will try again by itself."""

    generation: Generation
    retry_at: datetime


class Poll(Message):
    """``POST /v1/poll``: asks whether there is something to do. It is the heartbeat too."""

    generation: Generation
    """Generation of the plan that the node last completed; 0 before the first."""
    digest: Sha256
    boot_id: Annotated[str, Meta(max_length=64)] = ""
    wait: Annotated[float, Meta(ge=0, le=60)] = 0.0
    """How long control may hold the poll while there is nothing to do; 25 s at most."""
    failed: FailedGeneration | None = None
    inventory: Inventory | None = None
    """Sent when control has asked for it by `Report`."""
    capabilities_digest: Annotated[str, Meta(max_length=64)] = ""
    """Changes with the capabilities and the protocol; control only compares it."""
    capabilities: dict[str, Any] | None = None
    """Sent with `inventory`; as in `Join`."""
    protocol: Number = 1
    watching: Annotated[str, Meta(max_length=64)] = ""
    """The digest of the last `Watch`; '' where nobody watches the node, as far as it knows."""
    name: Annotated[str, Meta(max_length=63)] = ""
    """What the node is called, as far as it knows; where control has another name, the answer is `Renamed`."""
    numbers: bytes = b""
    """What was counted since the numbers before: `Numbers` in msgpack, or nothing."""


class FunctionNumbers(Struct, array_like=True):
    """How calls of one function of one release ended, and how long they took; 48 bytes at most."""

    index: Annotated[int, Meta(ge=0, lt=MOST_FUNCTIONS)]
    """The function's place in its release, whose functions are sorted by name."""
    release: Number
    """Number of the release."""
    outcomes: Annotated[list[Count], Meta(max_length=2 * len(OUTCOMES))]
    """Pairs of a place in `OUTCOMES` and the number of calls that ended so; calls that ended well aren't there."""
    seconds: Annotated[bytes, Meta(max_length=64)]
    """The times of all calls, arrival to end (`histogram.pack`): so their sum is the number of calls."""


class NodeNumbers(Struct, array_like=True):
    """How the node itself is: what is there now, and under `worker_deaths` and after what happened since the numbers
    before."""

    database: Count = 0
    """Bytes of the database file."""
    wal: Count = 0
    """Bytes of its write-ahead log."""
    disk_free: Count = 0
    """Bytes that are free on the database's disk."""
    memory: Count = 0
    """Bytes of memory that all processes of the node have, what they share counted once."""
    certificate_ends: Count = 0
    """Unix seconds when the certificate of its local HTTPS ends; 0 where it has none."""
    credential_ends: Count = 0
    """Unix seconds when its credential ends; 0 where that isn't known."""
    edge: Annotated[str, Meta(max_length=32)] = ""
    """Version of the node's software."""
    worker_deaths: Count = 0
    """Workers that ended."""
    log_dropped: Count = 0
    """Lines of its log that were dropped."""
    failed_syncs: Count = 0
    """Syncs that failed."""
    trust: Annotated[str, Meta(max_length=16)] = ""
    """Which CAs it trusts control by: the digest of which control tells with polls, or `system` for those of its
    system; '' of a version that doesn't say."""
    trust_ends: Count = 0
    """Unix seconds when the last of these CAs ends; 0 where that isn't known."""


class Numbers(Struct, array_like=True):
    """What a node counted in a while, sent with polls until one was answered: then the next has the sequence after."""

    sequence: Count
    """Grows from one to the next within one `Poll.boot_id`; the same one again is to be counted once."""
    seconds: Annotated[float, Meta(ge=0, le=2**31)]
    """How long the while was."""
    functions: Annotated[list[FunctionNumbers], Meta(max_length=2 * MOST_FUNCTIONS)]
    """Only those that were called."""
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
    """Presigned, or relative to control where the store is private; fresh ones by `GET /v1/artifacts/{sha256}`."""
    manifest: dict[str, Any]
    """As control stores it; a node that doesn't know one of its fields fails the sync and says so."""
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
    """To apply, in order: those after the node's schema version, up to the floor."""
    functions: list[PlannedFunction] = []
    """All functions of the release, those that the node has included."""
    remove: list[str] = []
    """Names that the node runs and the release lacks."""
    traceparent: str = ""
    """The span of this sync, where it is traced; to be sent with what the node tells of it (W3C Trace Context)."""


class Report(Message, tag="report"):
    """Control doesn't know one of the digests: poll again, with inventory and capabilities."""


class Renamed(Message, tag="renamed"):
    """An operator has given the node this name. Poll on, with it."""

    name: Name


class Question(Message):
    """What an operator wants to see of a node's records, as they come and of those that are there.

    A node leaves out a question of a kind or level that it doesn't know.
    """

    id: str
    """Of the watch, which never changes; to be sent along with what answers it."""
    since: datetime
    """Records from this time on, by control's clock."""
    kind: str = "lines"
    """`lines`, that functions and the node itself have logged, `calls`, that were slow or failed, or `functions`: what
    is counted of each, at once and, with `follow`, every 5 s."""
    history: bool = False
    """Whether somebody waits for the end of what is there already: it is to be told."""
    follow: bool = True
    """Whether records are wanted that are made later, too."""
    limit: int = 1000
    """Records at most of those that are there: the newest, or the slowest calls."""
    rate: float = 0.0
    """Records a second that the node may send at first; each batch's answer tells it anew."""
    level: str = "debug"
    """The least level: `debug`, `info`, `warning` or `error`."""
    function: str = ""
    """Only this function's records; '' for all."""
    call: str = ""
    """Only the records of the call with this id; '' for all."""
    failed: bool = False
    """Only calls that failed."""
    slowest: bool = False
    """The slowest calls rather than the newest."""


class Watch(Message, tag="watch"):
    """Who watches the node has changed: `questions` are all that there are now. Poll on, with this `digest`."""

    digest: str
    questions: list[Question] = []


class BatchTaken(Message):
    """The answer to a batch of records."""

    rate: float
    """Records a second that the node may send of this watch from now on."""


Answer = Plan | Report | Watch | Renamed


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
    """``POST /v1/nodes/self/sql``: SQL that somebody ran on the node; `rows` is None where nobody knows how many."""

    id: Uuid
    at: datetime
    user: Text
    kind: Literal["read", "write"]
    statement: Annotated[str, Meta(max_length=8000)]
    reason: Text = ""
    rows: int | None = None


def canonical(value: object) -> bytes:
    """JSON with sorted keys and without spaces: equal values give equal bytes."""
    return orjson.dumps(msgspec.to_builtins(value), option=orjson.OPT_SORT_KEYS)


def schema_checksum(sql: str) -> str:
    """sha256 of a schema change's text, as registered."""
    return hashlib.sha256(sql.encode()).hexdigest()


def digest(inventory: Inventory) -> str:
    """sha256 over what a node runs: schema version, checksums of the applied changes, functions."""
    value = [
        inventory.schema_version,
        [[c.number, c.checksum] for c in inventory.schema_changes],
        sorted([f.name, f.version, f.sha256, f.manifest_digest] for f in inventory.functions),
        inventory.database_id,
    ]
    return hashlib.sha256(canonical(value)).hexdigest()


class Problem(Struct, omit_defaults=True):
    """An error as problem+json (RFC 9457); `code` is stable, docs/errors.md has cause and cure of each."""

    code: str
    title: str
    status: int
    detail: str = ""
    field: str = ""
    call: str = ""
    """The id of the call that it answers: X-Request-Id."""
    type: str = "about:blank"
