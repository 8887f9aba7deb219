"""What goes into one call of a function and what comes out of it, whichever ABI the function speaks."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from edge_runtime.errors import CodedError


class Request(Struct, frozen=True):
    """One call. Text is as it was sent, each code point below 256 a byte: `path` (below the function's route, "" or
    beginning with a slash) and `query` percent-encoded; header names in any case."""

    method: str
    path: str = ""
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    remote_address: str = "127.0.0.1"
    scheme: str = "http"
    script: str = ""
    """What comes before `path`: empty for /functions/NAME."""
    route: str = ""
    """The manifest's route that the call came by; empty where none."""
    params: Sequence[tuple[str, str]] = ()
    """The values of the route's parameters, decoded."""
    key: bytes = b""
    """The same for requests that differ in their body alone; empty where that isn't known."""


class Response(Struct, frozen=True):
    """What the guest answered."""

    status: int
    head: bytes
    """The header lines as they go out, checked: `name: value`, each ended by CR LF; Content-Length is there for a
    HEAD's answer alone, which has no body; else whoever sends it computes it from `body`."""
    body: bytes
    log: bytes = b""
    """What the guest wrote to its log, cut at its bound."""


class SingleCallResult(Struct, omit_defaults=True):
    """What `skerry-edge call` is told of its call: the answer, or where `code` is set the fault in its place."""

    status: int
    head: bytes = b""
    body: bytes = b""
    log: bytes = b""
    seconds: float = 0.0
    """That the call took, its loading not counted."""
    code: str = ""
    message: str = ""


class CallLimits(Struct, frozen=True):
    """What a call may use. `memory_pages` of 64 KiB; the rest in bytes."""

    memory_pages: int = 1024
    response_bytes: int = 8 * 1024 * 1024
    """Of the body."""
    log_bytes: int = 16 * 1024
    """Of the log; what comes after is dropped."""


class Sql(Protocol):
    """The call's database: JSON in, JSON out, the errors of a statement included. What it raises ends the guest, and
    the call raises it."""

    def execute(self, request: bytes) -> bytes: ...


class Http(Protocol):
    """Requests that the node makes for the call; as `Sql`."""

    def fetch(self, request: bytes) -> bytes: ...


class Services(Struct, frozen=True):
    """What a call may use of the node's; None where its manifest grants it none."""

    sql: Sql | None = None
    http: Http | None = None


class RequestUnfit(ValueError):
    """The request can't be told to a guest in the manner of its ABI; the message says what of it."""


class GuestFault(CodedError):
    """The guest failed its request; `log` is what it wrote to its log."""

    def __init__(self, code: str, message: str, log: bytes = b"") -> None:
        super().__init__(code, message)
        self.log = log
