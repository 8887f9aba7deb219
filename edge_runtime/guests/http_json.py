"""The JSON of `skerry.http`. The worker turns it into the messages to the front (`ipc.http_messages`), and the front's
answers into JSON. Pure.

A request is `{"method", "url", "headers": [[name, value], …], "body"}`, where only the URL is required. An answer is
`{"status", "headers", "body"}`, or `{"error": {"code", "message"}}` (codes: docs/errors.md). A body is a string, or
`{"$blob": base64}` if it isn't UTF-8 text without NUL.
"""

import binascii
from typing import Final

import msgspec
import orjson
from msgspec import Struct, field

from edge_runtime.ipc import http_messages
from edge_runtime.ipc.http_messages import Asked, NotFetched


class _Blob(Struct, forbid_unknown_fields=True):
    bytes_: bytes = field(name="$blob")


class _HttpRequest(Struct, forbid_unknown_fields=True):
    url: str
    method: str = "GET"
    headers: list[tuple[str, str]] = []
    body: str | _Blob | None = None


_decode: Final = msgspec.json.Decoder(_HttpRequest).decode


def to_front(request: bytes) -> tuple[str, str, bytes]:
    """Return the method of a guest's request, its URL, and the message to the front.

    Raises: NotFetched, when the request isn't JSON of the form above.
    """
    try:
        decoded = _decode(request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotFetched("http_request_invalid", f"The request isn't as it must be: {error}") from None
    body = decoded.body
    data = b"" if body is None else body.encode() if isinstance(body, str) else body.bytes_
    head = msgspec.json.encode(Asked(decoded.method, decoded.url, decoded.headers))
    return decoded.method, decoded.url, http_messages.parcel(head, data)


def to_guest(answer: bytes) -> bytes:
    """Return the JSON for the guest from the front's answer."""
    head, body = http_messages.unpack(answer)
    if head.startswith(b'{"error"'):
        return head
    return b'%b,"body":%b}' % (head[:-1], _body(body))


def _body(body: bytes) -> bytes:
    if b"\0" not in body:
        try:
            return orjson.dumps(body.decode())
        except UnicodeDecodeError:
            pass
    return b'{"$blob":"%b"}' % binascii.b2a_base64(body, newline=False)
