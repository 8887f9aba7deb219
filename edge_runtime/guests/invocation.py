"""What goes into one call of a function and what comes out of it, whatever the function's ABI."""

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from edge_runtime.errors import CodedError
from edge_runtime.ipc.request_head import CallHead, decode_block


class Request(Struct, frozen=True):
    """The request of one call. Text is as sent, each code point below 256 standing for one byte. `path` (below the
    function's route; empty, or begins with a slash) and `query` are percent-encoded; header names are in any case."""

    method: str
    path: str = ""
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    remote_address: str = "127.0.0.1"
    scheme: str = "http"
    script: str = ""
    """The path before `path`; empty for /functions/NAME."""
    route: str = ""
    """The manifest's route that the call came by; empty if it came by none."""
    params: Sequence[tuple[str, str]] = ()
    """The values of the route's parameters, percent-decoded."""
    key: bytes = b""
    """A key that is equal for requests that differ only in their bodies; empty if this isn't known."""
    caller: str = ""
    """Name of the caller in the node's file of callers; empty if the node has none."""
    auth_type: str = ""
    """How the caller was authenticated: Bearer or Certificate; empty if there is no caller."""
    block: bytes = b""
    """The request as it lies in the memory of a guest of the ABI `direct` (`request_head`), if known. Such a guest gets
    it instead of the other fields, except `method`, `body`, `caller` and `auth_type`."""

    def caller_variables(self) -> dict[str, str]:
        """Return what a function's environment, or an Extism plug-in's config, says about the caller, if there is
        one."""
        return {"AUTH_TYPE": self.auth_type, "REMOTE_USER": self.caller} if self.caller else {}


def request_fields(head: CallHead, abi: str, key: bytes = b"") -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the fields of a `Request` before its body and those after it, from the head of the call's frame. `key` is
    the request's.

    Raises: ValueError, when no front would write such a head.
    """
    scheme, caller, auth_type = head.via
    if abi == "direct":
        # The guest gets the block as it is: only the method is needed as text.
        return (head.method, "", "", ()), ("", scheme, "", "", (), key, caller, auth_type, head.block)
    texts = decode_block(head.block)
    return (
        (texts.method, texts.path, texts.query, texts.headers),
        (texts.client, scheme, texts.script, texts.route, texts.params, key, caller, auth_type),
    )


def request_of(head: CallHead, abi: str, body: bytes) -> Request:
    """Return the request of a call from the head of its frame. Raises: as `request_fields`."""
    before, after = request_fields(head, abi)
    return Request(*(*before, body, *after))


class Response(Struct, frozen=True):
    """The guest's answer."""

    status: int
    head: bytes
    """The checked header lines as they are sent, each ended by CR LF; `ipc.answer_head.fields` reads them.
    Content-Length is among them only in the answer to a HEAD, which has no body; otherwise the sender computes it from
    `body`."""
    body: bytes
    log: bytes = b""
    """What the guest wrote to its log, cut at `CallLimits.log_bytes`."""


class SingleCallResult(Struct, omit_defaults=True):
    """The result of `oneshot.single_call`: the answer, or a fault if `code` is set."""

    status: int
    headers: list[tuple[str, str]] = []
    """Names and values, in their order."""
    body: bytes = b""
    log: bytes = b""
    seconds: float = 0.0
    """Seconds that the call took, without loading."""
    code: str = ""
    message: str = ""
    place: str = ""
    """The function of the module in which the guest trapped, if known."""
    snapshot: bool = False
    """Whether the module is a snapshot: those are too slow for the interpreter, which would know the place."""
    notes: list[str] = []
    """Errors that SQL and HTTP returned to the function, whether or not it mentioned them."""
    unasked: list[str] = []
    """Requests for which the case has answers, and which the function didn't make."""


class CallLimits(Struct, frozen=True):
    """What a call may use: memory in pages of 64 KiB, the rest in bytes."""

    memory_pages: int = 1024
    response_bytes: int = 8 * 1024 * 1024
    """Bytes of the response's body."""
    log_bytes: int = 16 * 1024
    """Bytes of the log; what the guest writes after that is dropped."""


class Sql(Protocol):
    """The call's database: JSON in, JSON out; errors of a statement are in the answer. An exception ends the guest, and
    the call raises it."""

    def execute(self, request: bytes) -> bytes: ...


class Http(Protocol):
    """HTTP requests that the node makes for the call. Answers and exceptions are like those of `Sql`."""

    def fetch(self, request: bytes) -> bytes: ...


class CallServices(Struct, frozen=True):
    """The node's services that a call may use; None for those that the manifest doesn't grant."""

    sql: Sql | None = None
    http: Http | None = None


class GuestFault(CodedError):
    """The guest failed its request. `log` is what it wrote to its log."""

    def __init__(self, code: str, message: str, log: bytes = b"") -> None:
        super().__init__(code, message)
        self.log = log
