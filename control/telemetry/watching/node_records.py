"""Records as nodes send them: bytes that anybody with a node's credential may have made.

A line that isn't a known record, or is too large, is left out and counted. The node's name is set here, so a
node can't speak for another.
"""

import zlib
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from control.problems import ProblemError
from control.protocol.wire import Count

LINE_BYTES = 64 * 1024
"""Bytes of a line."""
BATCH_BYTES = 1024 * 1024
"""Bytes of a batch, unpacked."""
MOST_PARTS = 100
"""Statements and requests of a call."""
MOST_OUTCOMES = 200
"""Codes with which calls of a function end: there are about fifty."""

Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$(?!\n)")]
Short = Annotated[str, Meta(max_length=128)]
Message = Annotated[str, Meta(max_length=32 * 1024)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class LogRecord(Struct, tag_field="kind", tag="log", omit_defaults=True):
    """A line that a function has logged."""

    t: Time
    level: Short
    message: Message
    function: Short = ""
    version: Count = 0
    release: Count = 0
    call: Short = ""
    node: str = ""


class NodeLogRecord(Struct, tag_field="kind", tag="node", omit_defaults=True):
    """A line of the node's own log."""

    t: Time
    level: Short
    message: Message
    call: Short = ""
    """The call that it is about, if it is about one."""
    node: str = ""


class StatementTimes(Struct, omit_defaults=True):
    """A statement of a call: its text without values, how often it ran, and its seconds in all."""

    statement: Annotated[str, Meta(max_length=8000)]
    count: Count = 1
    seconds: Seconds = 0.0


class RequestTime(Struct, omit_defaults=True):
    """An HTTP request of a call, and its seconds."""

    host: Annotated[str, Meta(max_length=300)] = ""
    url: Annotated[str, Meta(max_length=2000)] = ""
    method: Short = ""
    status: Count = 0
    seconds: Seconds = 0.0


class CallRecord(Struct, tag_field="kind", tag="call", omit_defaults=True):
    """A call that was slow, or failed."""

    t: Time
    function: Short = ""
    version: Count = 0
    release: Count = 0
    call: Short = ""
    node: str = ""
    method: Short = ""
    path: Annotated[str, Meta(max_length=8000)] = ""
    outcome: Short = ""
    status: Count = 0
    seconds: Seconds = 0.0
    times: Annotated[dict[Short, Seconds], Meta(max_length=32)] = {}
    sql: Annotated[list[StatementTimes], Meta(max_length=MOST_PARTS)] = []
    http: Annotated[list[RequestTime], Meta(max_length=MOST_PARTS)] = []


class FunctionRecord(Struct, tag_field="kind", tag="function", omit_defaults=True):
    """What a node has counted of a function's calls on a release, since the node started."""

    t: Time
    """When it was made: the same of all that were made together."""
    since: Time
    """When the node started to count."""
    function: Short = ""
    version: Count = 0
    """0 where it isn't served any more."""
    release: Count = 0
    """The release's number; 0: all those before the newest ones, together."""
    node: str = ""
    calls: Count = 0
    failed: Count = 0
    """Calls that ended in an error of the function or the node."""
    outcomes: Annotated[dict[Short, Count], Meta(max_length=MOST_OUTCOMES)] = {}
    """How calls ended that didn't end well, by the code."""
    p50: Seconds = 0.0
    p99: Seconds = 0.0


Kind = Literal["lines", "calls", "functions"]
_DECODERS: dict[
    str,
    "msgspec.json.Decoder[LogRecord | NodeLogRecord] | msgspec.json.Decoder[CallRecord | LogRecord | NodeLogRecord]"
    " | msgspec.json.Decoder[FunctionRecord]",
] = {
    "lines": msgspec.json.Decoder(LogRecord | NodeLogRecord),
    "calls": msgspec.json.Decoder(CallRecord | LogRecord | NodeLogRecord),
    "functions": msgspec.json.Decoder(FunctionRecord),
}
_encode = msgspec.json.Encoder().encode


class CheckedLines(NamedTuple):
    """The lines of a batch, each a record in JSON with its end, and how many weren't such."""

    lines: list[bytes]
    invalid: int


def unpack(raw: bytes, encoding: bytes) -> bytes:
    """Return a batch's bytes as they were before `encoding`, a Content-Encoding. Raises: ProblemError."""
    if encoding in (b"", b"identity"):
        return raw
    if encoding not in (b"gzip", b"deflate"):
        raise ProblemError("unsupported_media_type", "a batch is sent as it is, or with gzip or deflate")
    # 32: the format is told by its first bytes.
    unpacking = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        found = unpacking.decompress(raw, BATCH_BYTES + 1)
    except zlib.error as error:
        raise ProblemError("invalid_body", f"the batch can't be unpacked: {error}") from None
    if len(found) > BATCH_BYTES:
        raise ProblemError("body_too_large", f"a batch has {BATCH_BYTES} bytes at most, unpacked")
    return found


def check(raw: bytes, kind: str, node: str) -> CheckedLines:
    """Return the records of a question's kind in a batch of the node of this name.

    Raises: ProblemError not_ready, when a newer replica has asked for records of a kind that this one doesn't know.
    """
    if kind not in _DECODERS:
        text = f"this replica is of an earlier version, which has no records of the kind {kind}; another replica has"
        raise ProblemError("not_ready", text)
    decode = _DECODERS[kind].decode
    lines, invalid = [], 0
    for line in raw.split(b"\n"):
        if not line:
            continue
        try:
            if len(line) > LINE_BYTES:
                raise ValueError
            record = decode(line)
        except (ValueError, RecursionError):  # also msgspec's errors, and that of bytes that aren't UTF-8
            invalid += 1
            continue
        record.node = node
        lines.append(_encode(record) + b"\n")
    return CheckedLines(lines, invalid)
