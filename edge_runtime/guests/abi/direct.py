"""The ABI `direct`: a request is written into the guest's memory in one piece, and the response is read from it in one
piece. Pure.

Numbers are u32, little-endian. A request is the block of `ipc.request_head` and then the body. A response has the
status, the length of the header lines, the header lines (each ended by LF or CR LF); the rest is the body.
"""

import struct
from typing import Any, Final

from edge_runtime.guests.invocation import Request
from edge_runtime.ipc import answer_head
from edge_runtime.ipc.answer_head import CACHED_BYTES, CheckedResponse, ResponseInvalid
from edge_runtime.ipc.request_head import BLOCK, PLAIN, UNSENDABLE, RequestUnfit, encode_head

ALLOCATE: Final = "skerry_alloc"
"""(size) -> the address of room for `size` bytes."""
HANDLE: Final = "skerry_handle"
"""(address, size) -> the address of the response in the upper 32 bits, its size in the lower."""
SIGNATURES: Final = {ALLOCATE: ("i", "i"), HANDLE: ("ii", "I")}

_ANSWER: Final = struct.Struct("<II")
ANSWER_HEAD: Final = _ANSWER.size + answer_head.LIMIT
"""The most bytes of a response before its body."""


def encode(request: Request, function: str) -> bytes:
    """Return the piece of memory for a request, without the body.

    Raises: RequestUnfit, when the ABI can't express the request.
    """
    try:
        query = request.query.encode("latin-1")
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
    except UnicodeEncodeError:
        raise RequestUnfit(UNSENDABLE) from None
    script = request.script if request.route else request.script or f"/functions/{function}"
    return encode_head(
        0, 0, PLAIN, request.method, request.path, query, headers, script, request.route, request.params,
        request.remote_address,
    )[BLOCK:]  # fmt: skip


def header_lines(answer: bytes) -> bytes:
    """Return the header lines of a response, as the guest wrote them."""
    _, length = _ANSWER.unpack_from(answer)
    return answer[_ANSWER.size : _ANSWER.size + length]


def decode(memory: Any, start: int, size: int, method: str) -> CheckedResponse:
    """Return the response that begins at `start` in `memory`; all its `size` bytes are in the memory. `method` is the
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
    if length > answer_head.LIMIT or split > end:
        most = min(answer_head.LIMIT, end - lines)
        raise ResponseInvalid(f"it answered {size} bytes with {length} of header lines; at most {most} are possible")
    block = memory[lines:split]
    parsed = answer_head.parse_cached(block) if length <= CACHED_BYTES else answer_head.parse(block)
    if parsed.status is not None:
        raise ResponseInvalid("it wrote the header Status; the status is the answer's first number")
    body = memory[split:end]
    if not parsed.has_content_type or parsed.length is not None or status in answer_head.BODILESS:
        return status, answer_head.complete(parsed, status, body, method), body
    return status, parsed.lines, body
