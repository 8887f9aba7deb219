"""What an answer of the local HTTP begins with, and what a refusal says. No I/O."""

import http
from typing import Final

import msgspec

from control import wire
from edge_runtime.dispatch.outcomes import Refusal
from edge_runtime.errors import title_of

BODILESS: Final = (204, 304)
"""Statuses of answers without a body and without Content-Length."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PHRASES: Final = {status.value: status.phrase for status in http.HTTPStatus} | {499: "Client Closed Request"}
STATUS_LINES: Final = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(600)]


def of_refusal(refusal: Refusal) -> tuple[bytes, bytes]:
    """Return the header lines and the body that tell a client of a refusal."""
    status = refusal.status
    body = msgspec.json.encode(wire.Problem(refusal.code, title_of(refusal.code), status, refusal.message))
    head = b"content-type: application/problem+json\r\n"
    if refusal.retry_after:
        head += b"retry-after: %d\r\n" % refusal.retry_after
    if refusal.allow:
        head += b"allow: %b\r\n" % refusal.allow.encode()
    if status == 401:
        head += b"www-authenticate: Bearer\r\n"
    return head, body
