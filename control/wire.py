"""The messages between control, its nodes and its operators, and the digest of what a node runs.

It imports no other module of the project, since both packages share it. Messages of nodes may have unknown fields, so
that an older control and a newer edge work together, and the other way round; operators' bodies may not. Times are RFC
3339 in UTC, durations are in seconds unless a name says otherwise, sizes are in bytes.
"""

import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
import orjson
from msgspec import Meta, Struct

PROTOCOL = 1
"""Version of the nodes' protocol. A node sends its version, and control answers with messages that it knows."""

MIB = 1024 * 1024
MOST_FUNCTIONS, MOST_CHANGES = 1000, 10_000  # of a release; of the schema, since a node reports all that it applied

# A Python pattern's $ also matches before a line break at the end, hence the look-ahead.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$(?!\n)")]
"""Names of nodes, groups and functions: lower case letters, digits and hyphens, 63 at most."""
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)")]
Method = Annotated[str, Meta(pattern=r"^[A-Z]{1,16}$(?!\n)")]
HostPattern = Annotated[
    str,
    Meta(
        pattern=r"^(http://)?((\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]{2,45}\])(:[1-9][0-9]{0,4})?$(?!\n)",
        max_length=270,
    ),
]
"""``host`` or ``host:port``: a name, ``*.name`` for every name below it, or an address; in lower case. It means https,
where it doesn't begin with ``http://``; without a port the scheme's own."""
ConfigName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$(?!\n)")]
RoutePath = Annotated[
    str,
    Meta(
        pattern=r"^/(?:(?:[A-Za-z0-9._~!$&'()*+,;=:@-]+|\{[a-z][a-z0-9_]{0,31}\})/)*"
        r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]*|\{[a-z][a-z0-9_]{0,31}(?:\.\.\.)?\})$(?!\n)",
        max_length=1024,
    ),
]
"""Segments are literal or a parameter, ``/orders/{id}``; the last may be ``{name...}``, the rest of the path."""
Origin = Annotated[
    str,
    Meta(
        pattern=r"^(\*|null|[a-z][a-z0-9+.-]{0,30}://([a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]{2,45}\])"
        r"(:[1-9][0-9]{0,4})?)$(?!\n)",
        max_length=300,
    ),
]
"""Of a web page, as browsers write it: ``https://shop.example:8443``, in lower case; ``*`` is every page, ``null`` one
of a file or in a sandbox."""
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$(?!\n)")]
Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Generation = Annotated[int, Meta(ge=0, le=2**62)]
Text = Annotated[str, Meta(max_length=2000)]

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

_SHAPES = {
    f"`str` matching regex {get_args(kind)[1].pattern!r}": shape
    for kind, shape in (
        (Name, "a name of lower case letters, digits and hyphens, 63 at most"),
        (Method, "a method, in upper case"),
        (HostPattern, "a host alone, as api.example, *.api.example or http://10.0.0.1:8080"),
        (ConfigName, "a name of letters, digits, `_`, `-` and `.` that begins with a letter, 63 at most"),
        (Origin, "an origin as https://shop.example (no path, in lower case), `null` or `*`"),
        (HeaderName, "the name of a header"),
        (RoutePath, "a path as /orders/{id} or /files/{rest...}"),
    )
}


def unfit(error: msgspec.ValidationError) -> str:
    """The error's text with words in place of the patterns that msgspec shows."""
    text = str(error)
    for pattern, shape in _SHAPES.items():
        text = text.replace(pattern, shape)
    return text


class Message(Struct, omit_defaults=True):
    """A node's message, or control's to a node: unknown fields are ignored."""


class Body(Struct, forbid_unknown_fields=True, frozen=True):
    """An operator's request: unknown fields are refused."""


# What a version may do and how it is called

SqlGrant = Literal["none", "read", "write"]
READ_ONLY_METHODS: Final = ("GET", "HEAD")
"""Methods of which HTTP says that they change nothing: browsers send them for any web page, without asking first."""


class Probe(Body, frozen=True):
    """A call made before a release is committed, in a transaction that is always rolled back."""

    method: Method = "GET"
    path: Annotated[str, Meta(pattern=r"^/", max_length=1024)] = "/"
    body: Annotated[str, Meta(max_length=65536)] = ""
    status: Annotated[int, Meta(ge=100, le=599)] = 200
    """The status that the function must answer."""


class HttpGrant(Body, frozen=True, omit_defaults=True):
    """Which requests a function may have the node make for it."""

    hosts: Annotated[list[HostPattern], Meta(min_length=1, max_length=64)]
    methods: Annotated[tuple[Method, ...], Meta(min_length=1, max_length=16)] = ("GET", "HEAD")
    request_bytes: Annotated[int, Meta(ge=0, le=64 * MIB)] = MIB
    """Bytes of the largest request body."""
    response_bytes: Annotated[int, Meta(ge=1, le=64 * MIB)] = MIB
    """Bytes of the largest answer body."""
    time_limit_ms: Annotated[int, Meta(ge=10, le=60_000)] = 5_000
    """Time limit of one request, from the look-up of the name to the last byte; the call's own limit goes on too."""


class Route(Body, frozen=True, omit_defaults=True):
    """A path of the node's HTTP that the function serves, beside ``/functions/NAME``, which every function has."""

    path: RoutePath
    methods: Annotated[list[Method], Meta(max_length=16)] = []
    """Empty: every method."""


class Cors(Body, frozen=True, omit_defaults=True):
    """Which web pages of other origins may call a function and read its answers."""

    origins: Annotated[list[Origin], Meta(min_length=1, max_length=64)]
    methods: Annotated[tuple[Method, ...], Meta(min_length=1, max_length=16)] = ("GET", "HEAD", "POST")
    headers: Annotated[tuple[HeaderName, ...], Meta(max_length=64)] = ("content-type",)
    """Headers that the pages may send, besides those that every page may."""
    credentials: bool = False
    """Browsers send cookies and certificates too."""
    max_age: Annotated[int, Meta(ge=0, le=86_400)] = 600
    """Seconds for which a browser may remember what the pages may do."""


class Manifest(Body, frozen=True, omit_defaults=True):
    """What a version may use and how it is called. Immutable, as the version is; nothing is allowed by default."""

    abi: Literal["", "wagi", "extism", "direct"] = ""
    """Empty in an operator's request: the check of the module finds it. Stored, it is never empty."""
    entry: Annotated[str, Meta(max_length=256)] = ""
    """Extism: the export to call when the path names none."""
    route: Route | None = None
    sql: SqlGrant = "none"
    read_only_methods: Annotated[tuple[Method, ...], Meta(max_length=16)] | None = None
    """With `sql` "write": the methods whose calls only read the database. Not given, in an operator's request, it means
    READ_ONLY_METHODS (`completed`); in a stored manifest it means none, as versions have it that are older than this
    field."""
    cors: Cors | None = None
    navigation: bool = False
    """Links of other sites may open it, by GET and HEAD."""
    http: HttpGrant | None = None
    config: Annotated[dict[ConfigName, Annotated[str, Meta(max_length=4096)]], Meta(max_length=1000)] = {}
    """Given to the guest as environment variables, or in the way of its ABI."""
    secrets: Annotated[list[ConfigName], Meta(max_length=64)] = []
    """Names of secrets; each node has its own values, in a private file."""
    time_limit_ms: Annotated[int, Meta(ge=10, le=60_000)] = 5_000
    memory_pages: Annotated[int, Meta(ge=1, le=16_384)] = 1_024
    response_limit: Annotated[int, Meta(ge=1, le=64 * MIB)] = 8 * MIB
    log_bytes: Annotated[int, Meta(ge=0, le=MIB)] = 16 * 1024
    """Bytes of a call's log; further ones are dropped."""
    sql_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 65_536
    """Rows of one statement's answer."""
    sql_bytes: Annotated[int, Meta(ge=1, le=64 * MIB)] = 8 * MIB
    """Bytes of one statement's answer, as JSON."""
    concurrency: Annotated[int, Meta(ge=0, le=100)] = 0
    """Workers that its calls may have at once; 0: the node's setting."""
    queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Calls that may wait for a worker; 0: the node's setting."""
    probe: Probe | None = None


def completed(manifest: Manifest) -> Manifest:
    """An author's manifest as a version stores it. `read_only_methods` is stored only where it says something, since a
    node of an earlier version refuses a manifest with that field."""
    methods = READ_ONLY_METHODS if manifest.read_only_methods is None else manifest.read_only_methods
    return msgspec.structs.replace(manifest, read_only_methods=(methods or None) if manifest.sql == "write" else None)


def sql_grant(manifest: Manifest, method: str) -> SqlGrant:
    """What a call with this method may do in the database, by a stored manifest."""
    if manifest.sql == "write" and method in (manifest.read_only_methods or ()):
        return "read"
    return manifest.sql


def fields(kind: type[Struct]) -> list[str]:
    """The paths of all fields of a struct, with those of structs within it: ``http``, ``http.hosts``."""
    found: list[str] = []
    for field in msgspec.structs.fields(kind):
        within = [t for t in (field.type, *get_args(field.type)) if isinstance(t, type) and issubclass(t, Struct)]
        found += [field.name, *(f"{field.name}.{name}" for type_ in within for name in fields(type_))]
    return found


MANIFEST_FIELDS: Final = tuple(fields(Manifest))
"""The fields of a manifest that this version knows; a node refuses a release with any other field."""


# Nodes


class Join(Message):
    """``POST /v1/nodes``, authenticated by a one-time join token."""

    name: Name
    attempt: Uuid
    """Random; the same attempt again, before the credential was used, gives a replacement."""
    labels: dict[str, str] = {}
    capabilities: dict[str, Any] = {}
    """What the node can run; a release's needs are compared with `abi` and `manifest` (its fields)."""
    protocol: Number = PROTOCOL


class Joined(Message):
    node_id: str
    credential: str
    group: str


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
    protocol: Number = PROTOCOL


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


class Report(Message, tag="report"):
    """Control doesn't know one of the digests: poll again, with inventory and capabilities."""


Answer = Plan | Report


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


def manifest_digest(manifest: Manifest) -> str:
    """sha256 of the canonical manifest without fields at their defaults, so that a new field changes no old digest."""
    return hashlib.sha256(canonical(manifest)).hexdigest()


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
    type: str = "about:blank"
