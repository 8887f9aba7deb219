"""The messages in which a worker has the front make an HTTP request, and gets the answer. Pure.

A message is a parcel: a head in JSON, and the body as it is. The worker converts the guest's JSON to parcels and back
(`guests.http_json`), because bodies may be large and the front has other calls to serve. The front checks what a
function may request (`egress.grants`).
"""

from collections.abc import Iterable
from typing import Final

import msgspec
import orjson
from msgspec import Struct

from edge_runtime.errors import CodedError

REPEATABLE: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
"""Methods of requests that may be sent twice (RFC 9110, 9.2.2)."""
HOP_BY_HOP: Final = frozenset(
    ("connection", "expect", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade")
)  # fmt: skip
"""Headers about the connection, which is the node's."""


class NotFetched(CodedError):
    """Why there is no answer. `denied` is the kind of the missing grant; empty if none is missing."""

    def __init__(self, code: str, message: str, denied: str = "") -> None:
        super().__init__(code, message)
        self.denied = denied


class Asked(Struct, array_like=True):
    """The head of a request's parcel: the function's request."""

    method: str
    url: str
    headers: list[tuple[str, str]]


decode_asked: Final = msgspec.json.Decoder(Asked).decode


def parcel(head: bytes, body: bytes | bytearray = b"") -> bytes:
    return b"".join((len(head).to_bytes(4), head, body))


def unpack(data: bytes) -> tuple[bytes, bytes]:
    """Split a parcel into head and body."""
    end = 4 + int.from_bytes(data[:4])
    return data[4:end], data[end:]


def answer(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes | bytearray) -> bytes:
    """Return the parcel of an answer, without the headers that were about the connection."""
    listed = [(_text(name).lower(), _text(value)) for name, value in headers]
    dropped = {*HOP_BY_HOP, "proxy-authenticate"}
    for name, value in listed:
        if name == "connection":
            dropped |= {option.strip().lower() for option in value.split(",")}
    kept = [item for item in listed if item[0] not in dropped]
    return parcel(orjson.dumps({"status": status, "headers": kept}), body)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # HTTP read such bytes as latin-1 before UTF-8 existed.
        return raw.decode("latin-1")


def refused(code: str, message: str) -> bytes:
    """Return, as JSON, the head of a parcel without a body that tells the guest why there is no answer from a
    server."""
    return orjson.dumps({"error": {"code": code, "message": message}})
