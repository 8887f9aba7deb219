"""The ABI `direct`: a request goes into the guest's memory in one piece, and the answer comes out in one. Pure.

Numbers are u32, little-endian. A request: eight lengths, then as many texts, each followed by a NUL that its length
doesn't count, in the order of `TEXTS`; the rest is the body. An answer: status, length of the header lines, the header
lines (each ended by LF or CR LF), and the rest is the body.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote_from_bytes

from edge_runtime.guests.abi import head
from edge_runtime.guests.abi.head import CheckedResponse, ResponseInvalid
from edge_runtime.guests.invocation import Request, RequestUnfit

ALLOCATE: Final = "skerry_alloc"
"""(size) -> where the guest has room for so many bytes."""
HANDLE: Final = "skerry_handle"
"""(where, size) -> where the answer is, in the upper half, and its size."""
SIGNATURES: Final = {ALLOCATE: ("i", "i"), HANDLE: ("ii", "I")}

TEXTS: Final = ("method", "path", "query", "headers", "script", "route", "params", "client")
"""`headers` are lines, `name: value` and LF; `params` look like a query; the others are those of a `Request`."""
_LENGTHS: Final = struct.Struct(f"<{len(TEXTS)}I")
_ANSWER: Final = struct.Struct("<II")
ANSWER_HEAD: Final = _ANSWER.size + head.LIMIT
"""The most bytes of an answer that are not its body."""


def encode(request: Request, function: str) -> bytes:
    """Everything of a request's piece but the body. Error: RequestUnfit."""
    lines = "".join([f"{name}: {value}\n" for name, value in request.headers])
    if lines.count("\n") != len(request.headers):
        raise RequestUnfit("a header has a line break")
    params = "&".join([f"{name}={_quoted(value)}" for name, value in request.params])
    script = request.script or f"/functions/{function}"
    return _joined(
        (request.method, request.path, request.query, lines, script, request.route, params, request.remote_address)
    )


def _joined(texts: Sequence[str]) -> bytes:
    try:
        return _LENGTHS.pack(*map(len, texts)) + ("\0".join(texts) + "\0").encode("latin-1")
    except UnicodeEncodeError:
        raise RequestUnfit("it has characters that no request can have") from None


def _quoted(value: str) -> str:
    return quote_from_bytes(value.encode("latin-1", "replace"), safe="")


def decode(memory: Any, start: int, size: int, method: str) -> CheckedResponse:
    """The answer in `memory` from `start` on, all `size` bytes of which are there. `method` is the request's.

    Error: ResponseInvalid.
    """
    if size < _ANSWER.size:
        raise ResponseInvalid(f"it answered {size} bytes; an answer begins with {_ANSWER.size}")
    status, length = _ANSWER.unpack_from(memory, start)
    if not 200 <= status <= 599:
        raise ResponseInvalid(f"it answered the status {status}; a status is a number from 200 to 599")
    lines, end = start + _ANSWER.size, start + size
    split = lines + length
    if length > head.LIMIT or split > end:
        raise ResponseInvalid(
            f"it answered {size} bytes with {length} of header lines; {min(head.LIMIT, end - lines)} can be"
        )
    block = memory[lines:split]
    found = head.parse_cached(block) if length <= head.CACHED_BYTES else head.parse(block)
    if found.status is not None:
        raise ResponseInvalid("it wrote the header Status; the status is the answer's first number")
    body = memory[split:end]
    if not found.has_content_type or found.length is not None or status in head.BODILESS:
        return status, head.complete(found, status, body, method), body
    return status, found.lines, body
