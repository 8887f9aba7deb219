"""The fields of a manifest, which say what a version may use and how it is called.

It imports only `wire` from the project, since both packages share it. Sizes are in bytes.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta, Struct, field, inspect

from control.protocol.wire import MIB, Body, LabelKey, LabelValue, Name, Sha256, Uuid, canonical

# A Python pattern's $ also matches before a line break at the end, hence the look-ahead.
Method = Annotated[str, Meta(pattern=r"^[A-Z]{1,16}$(?!\n)")]
HostPattern = Annotated[
    str,
    Meta(
        pattern=r"^(http://)?((\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]{2,45}\])(:[1-9][0-9]{0,4})?$(?!\n)",
        max_length=270,
    ),
]
"""``host`` or ``host:port``: a name, ``*.name`` for every name below it, or an address; in lower case. The scheme is
https unless it begins with ``http://``; the port is by default the scheme's."""
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
RouteHost = Annotated[
    str,
    Meta(
        pattern=r"^(\*\.[a-z0-9_-]{1,63}\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$(?!\n)",
        max_length=253,
    ),
]
"""A host that clients use in URLs: a name, ``*.name`` for every name below one of at least two labels, or an IPv4
address; in lower case, without a port."""
Origin = Annotated[
    str,
    Meta(
        pattern=r"^(\*|null|[a-z][a-z0-9+.-]{0,30}://([a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*|\[[0-9a-f:.]{2,45}\])"
        r"(:[1-9][0-9]{0,4})?)$(?!\n)",
        max_length=300,
    ),
]
"""A web page's origin as browsers write it: ``https://shop.example:8443``, in lower case; ``*`` is every page, ``null``
a page of a file or in a sandbox."""
CronLine = Annotated[str, Meta(max_length=100)]
"""A cron line of five fields, by the rules of `cron.check`."""
ZoneName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$(?!\n)", max_length=64)]
"""A time zone's IANA name."""
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$(?!\n)")]

_SHAPES = {
    f"`str` matching regex {get_args(kind)[1].pattern!r}": shape
    for kind, shape in (
        (Name, "a name of lower case letters, digits and hyphens, 63 at most"),
        (Method, "a method, in upper case"),
        (HostPattern, "a host alone, as api.example, *.api.example or http://10.0.0.1:8080"),
        (RouteHost, "a host's name in lower case, without a port, as shop.example or *.shop.example"),
        (ConfigName, "a name of letters, digits, `_`, `-` and `.` that begins with a letter, 63 at most"),
        (Origin, "an origin as https://shop.example (no path, in lower case), `null` or `*`"),
        (HeaderName, "the name of a header"),
        (ZoneName, "a time zone's IANA name, as Europe/Berlin"),
        (RoutePath, "a path as /orders/{id} or /files/{rest...}"),
        (LabelKey, "a label's key of letters and digits, with . _ / or - between them, 63 at most"),
        (LabelValue, "a line of text"),
        (Sha256, "a SHA-256 of 64 hexadecimal digits, in lower case"),
        (Uuid, "an id (a UUID, in lower case)"),
    )
}


_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`")
_AT = re.compile(r" - at `\$([^`]*)`$")


def unfit(error: msgspec.ValidationError, kind: Any) -> str:
    """Return the text of an error from converting to `kind`, for people.

    It has words instead of the patterns that msgspec shows, the valid values where a value is none of them, and for an
    unknown field the known field with the most similar name.
    """
    text = str(error)
    if text.startswith("Invalid enum value"):
        there_are = sorted({_quoted(value) for type_ in _types_at(kind, text) for value in _values(type_)})
        text += f"; there {'are' if len(there_are) > 1 else 'is'} {', '.join(there_are)}" if there_are else ""
    elif (unknown := unknown_field(error, kind)) is not None:
        text += f"; is `{unknown.near}` meant?" if unknown.near else ""
    for pattern, shape in _SHAPES.items():
        text = text.replace(pattern, shape)
    return text


class UnknownField(NamedTuple):
    """A field that doesn't exist."""

    name: str
    near: str
    """The field that may be meant, or ''."""
    known: list[str]
    """The fields that exist in its place."""


def unknown_field(error: msgspec.ValidationError, kind: Any) -> UnknownField | None:
    """Return the unknown field that an error from converting to `kind` is about; None if it is about something else."""
    unknown = _UNKNOWN.match(str(error))
    if unknown is None:
        return None
    from difflib import get_close_matches  # here, since hardly any request needs it

    known = [name for type_ in _types_at(kind, str(error)) for name in _fields(type_)]
    return UnknownField(unknown[1], next(iter(get_close_matches(unknown[1], known, 1)), ""), known)


def _quoted(value: object) -> str:
    return f"`{value}`" if value else '`""`'


def _values(found: Any) -> tuple[Any, ...]:
    return found.values if isinstance(found, inspect.LiteralType) else ()


def _fields(found: Any) -> list[str]:
    return [each.encode_name for each in found.fields] if isinstance(found, inspect.StructType) else []


def _types_at(kind: Any, text: str) -> list[Any]:
    """Return the types allowed at the place that an error's text names: for a union, all its members."""
    place = _AT.search(text)
    found = list(_members(inspect.type_info(kind)))
    for name in re.findall(r"\.([^.\[]+)|\[", place[1]) if place else ():
        found = [member for type_ in found for part in _parts(type_, name) for member in _members(part)]
    return found


def _members(found: Any) -> Iterator[Any]:
    if isinstance(found, inspect.Metadata):
        yield from _members(found.type)
    elif isinstance(found, inspect.UnionType):
        for each in found.types:
            yield from _members(each)
    else:
        yield found


def _parts(found: Any, name: str) -> Iterator[Any]:
    """Yield the types within a type: those of the field `name`, or of its items where the name is empty."""
    if isinstance(found, inspect.StructType):
        yield from (each.type for each in found.fields if each.encode_name == name)
    elif isinstance(found, inspect.DictType):
        yield found.value_type
    elif isinstance(found, inspect.ListType | inspect.VarTupleType):
        yield found.item_type


SqlGrant = Literal["none", "read", "write"]
TICK_HEADERS: Final = ("skerry-event", "skerry-scheduled-at", "skerry-cron")
"""Headers of calls that the node makes by itself, which no client can send: `schedule` or `release`; when the tick was
due (RFC 3339, UTC); and the cron line, which a release's call lacks."""
READ_ONLY_METHODS: Final = ("GET", "HEAD")
"""Methods that by HTTP's rules change nothing: browsers send them for any web page, without asking first."""


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
    """Time limit of one request, from the look-up of the name to the last byte; the call's own limit applies too."""


class Route(Body, frozen=True, omit_defaults=True):
    """A path of the node's HTTP that the function serves, besides ``/functions/NAME``, which every function has."""

    path: RoutePath
    methods: Annotated[list[Method], Meta(max_length=16)] = field(default_factory=list)
    """Empty: every method."""
    hosts: Annotated[list[RouteHost], Meta(max_length=16)] = field(default_factory=list)
    """The hosts that a request may be for, by its Host header; empty: every host."""


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
    """Empty in an operator's request: the check of the module finds it out. In a stored manifest it is never empty."""
    entry: Annotated[str, Meta(max_length=256)] = ""
    """Extism: the export to call when the path names none."""
    route: Route | None = None
    sql: SqlGrant = "none"
    read_only_methods: Annotated[tuple[Method, ...], Meta(max_length=16)] | None = None
    """With `sql` "write": the methods whose calls only read the database. If not given, an operator's request means
    READ_ONLY_METHODS (`completed`), and a stored manifest means none: it may be of a version older than this field."""
    cors: Cors | None = None
    navigation: bool = False
    """Links of other sites may open it, by GET and HEAD."""
    http: HttpGrant | None = None
    config: Annotated[dict[ConfigName, Annotated[str, Meta(max_length=4096)]], Meta(max_length=1000)] = field(
        default_factory=dict
    )
    """Passed to the guest as environment variables, or however its ABI passes them."""
    secrets: Annotated[list[ConfigName], Meta(max_length=64)] = field(default_factory=list)
    """Names of secrets; each node has its own values, in a private file."""
    time_limit_ms: Annotated[int, Meta(ge=10, le=60_000)] = 5_000
    memory_pages: Annotated[int, Meta(ge=1, le=16_384)] = 1_024
    response_limit: Annotated[int, Meta(ge=1, le=64 * MIB)] = 8 * MIB
    log_bytes: Annotated[int, Meta(ge=0, le=MIB)] = 16 * 1024
    """Bytes of a call's log; further ones are dropped."""
    sql_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 65_536
    """The most rows in one statement's answer."""
    sql_bytes: Annotated[int, Meta(ge=1, le=64 * MIB)] = 8 * MIB
    """Bytes of one statement's answer, as JSON."""
    concurrency: Annotated[int, Meta(ge=0, le=100)] = 0
    """Workers that its calls may have at once; 0: the node's setting."""
    queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Calls that may wait for a worker; 0: the node's setting."""
    probe: Probe | None = None
    schedule: Annotated[list[CronLine], Meta(max_length=16)] = field(default_factory=list)
    """When the node calls the function by itself, as POST /, once for each tick of each line."""
    timezone: ZoneName = "UTC"
    """The time zone of `schedule`."""
    jitter_seconds: Annotated[int, Meta(ge=0, le=3_600)] = 0
    """The most seconds by which a tick is late on purpose, a random number, so that nodes don't all act at once."""
    missed: Literal["skip", "once", "all"] = "skip"
    """Which of a line's ticks run that were missed while the node was off: none, the last one, or all."""
    missed_most: Annotated[int, Meta(ge=1, le=1_000)] = 100
    """With `missed` "all": the most ticks of a line that are made up for, the newest of them."""
    on_release: bool = False
    """The node calls the function, as POST /, after each release that brings it in another version."""
    trace_headers: bool = False
    """Calls get the headers X-Request-Id (the call's id, chosen by the node if the client sent none) and traceparent.
    The heads of calls then differ, which costs each call about 15 µs."""


def completed(manifest: Manifest) -> Manifest:
    """Return an author's manifest as a version stores it.

    `read_only_methods` is stored only where it matters, since nodes of earlier versions refuse a manifest with it.
    """
    methods = READ_ONLY_METHODS if manifest.read_only_methods is None else manifest.read_only_methods
    return msgspec.structs.replace(manifest, read_only_methods=(methods or None) if manifest.sql == "write" else None)


def sql_grant(manifest: Manifest, method: str) -> SqlGrant:
    """Return what a call with this method may do in the database, by a stored manifest."""
    if manifest.sql == "write" and method in (manifest.read_only_methods or ()):
        return "read"
    return manifest.sql


def field_paths(kind: type[Struct]) -> list[str]:
    """Return the paths of all fields of a struct and of the structs within it: ``http``, ``http.hosts``."""
    found: list[str] = []
    for each in msgspec.structs.fields(kind):
        within = [t for t in (each.type, *get_args(each.type)) if isinstance(t, type) and issubclass(t, Struct)]
        found += [each.name, *(f"{each.name}.{name}" for type_ in within for name in field_paths(type_))]
    return found


MANIFEST_FIELDS: Final = tuple(field_paths(Manifest))
"""The fields of a manifest that this version knows; a node refuses a release with any other field."""


def manifest_digest(manifest: Manifest) -> str:
    """Return the sha256 of the canonical manifest without fields at their defaults: new fields change no old digest."""
    return hashlib.sha256(canonical(manifest)).hexdigest()
