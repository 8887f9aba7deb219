"""What an answer of the local HTTP begins with, and what a refusal says. No I/O."""

import http
from typing import Final

import msgspec

from control.protocol import wire
from edge_runtime.dispatch.outcomes import Refusal
from edge_runtime.errors import title_of

BODILESS: Final = (204, 304)
"""Statuses of answers without a body and without Content-Length."""
LAST: Final = (400, 401, 408, 413, 431)
"""Statuses of refusals after which nothing more is read from the connection."""
KEEPS: Final = b"connection: keep-alive\r\n\r\n"
CLOSES: Final = b"connection: close\r\n\r\n"
"""The last lines of a head: whether the connection may have another request."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PHRASES: Final = {status.value: status.phrase for status in http.HTTPStatus} | {499: "Client Closed Request"}
STATUS_LINES: Final = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(600)]


def of_refusal(refusal: Refusal, request_id: bytes, release: int) -> tuple[bytes, bytes]:
    """Return the header lines and the body that tell a client of a refusal; `release` is the number of the release that
    the request was for, 0 where it was for none."""
    status = refusal.status
    title, call = title_of(refusal.code), request_id.decode()
    body = msgspec.json.encode(wire.Problem(refusal.code, title, status, refusal.message, call=call))
    head = b"content-type: application/problem+json\r\n"
    if release:
        head += b"skerry-release: %d\r\n" % release
    if refusal.retry_after:
        head += b"retry-after: %d\r\n" % refusal.retry_after
    if refusal.allow:
        head += b"allow: %b\r\n" % refusal.allow.encode()
    if status == 401:
        head += b"www-authenticate: Bearer\r\n"
    return head, body
