"""The ABI `direct`: a request is written into the guest's memory in one piece, and the response read from it in one.
Pure.

Numbers are u32, little-endian. A request has eight lengths, then as many texts in the order of `TEXTS`, each followed
by a NUL that its length doesn't count; the rest is the body. A response has the status, the length of the header lines,
the header lines (each ended by LF or CR LF); the rest is the body.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote_from_bytes

from edge_runtime.guests.abi import head
from edge_runtime.guests.abi.head import CheckedResponse, ResponseInvalid
from edge_runtime.guests.invocation import Request, RequestUnfit

ALLOCATE: Final = "skerry_alloc"
"""(size) -> the address of room for `size` bytes."""
HANDLE: Final = "skerry_handle"
"""(address, size) -> the address of the response in the upper 32 bits, its size in the lower."""
SIGNATURES: Final = {ALLOCATE: ("i", "i"), HANDLE: ("ii", "I")}

TEXTS: Final = ("method", "path", "query", "headers", "script", "route", "params", "client")
"""`headers` are lines, each `name: value` and LF; `params` are written like a query string, `client` is the remote
address; the others are fields of a `Request`."""
_LENGTHS: Final = struct.Struct(f"<{len(TEXTS)}I")
_ANSWER: Final = struct.Struct("<II")
ANSWER_HEAD: Final = _ANSWER.size + head.LIMIT
"""The most bytes of a response before its body."""


def encode(request: Request, function: str) -> bytes:
    """Return the piece of memory for a request, without the body.

    Raises: RequestUnfit, when the ABI can't express the request.
    """
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
    """Return the response that begins at `start` in `memory`, all `size` bytes of which are there. `method` is the
    request's.

    Raises: ResponseInvalid, when it isn't a response.
    """
    if size < _ANSWER.size:
        raise ResponseInvalid(f"it answered {size} bytes; an answer begins with {_ANSWER.size}")
    status, length = _ANSWER.unpack_from(memory, start)
    if not 200 <= status <= 599:
        raise ResponseInvalid(f"it answered the status {status}; a status is a number from 200 to 599")
    lines, end = start + _ANSWER.size, start + size
    split = lines + length
    if length > head.LIMIT or split > end:
        most = min(head.LIMIT, end - lines)
        raise ResponseInvalid(f"it answered {size} bytes with {length} of header lines; at most {most} are possible")
    block = memory[lines:split]
    parsed = head.parse_cached(block) if length <= head.CACHED_BYTES else head.parse(block)
    if parsed.status is not None:
        raise ResponseInvalid("it wrote the header Status; the status is the answer's first number")
    body = memory[split:end]
    if not parsed.has_content_type or parsed.length is not None or status in head.BODILESS:
        return status, head.complete(parsed, status, body, method), body
    return status, parsed.lines, body
