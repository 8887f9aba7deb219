"""The Python part of a call in the C loop (`edge_runtime.native`): its fault, or the check of its answer."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from edge_runtime.guests.abi import wagi
from edge_runtime.guests.host_functions import FAILURES, Guest
from edge_runtime.guests.invocation import CallServices, GuestFault, Request, Response
from edge_runtime.guests.wasi import Exit, OutputTooLarge, exit_code
from edge_runtime.ipc import answer_head
from edge_runtime.ipc.answer_head import CheckedResponse, Head
from edge_runtime.wasmedge import failed


class CallEnd(NamedTuple):
    """How a guest's call ended."""

    stop: str
    """Why it was ended: "exit", "output" (too much to stdout), "room" (none for the request); else empty."""
    result: int
    """WasmEdge's result; 0 if the guest has returned."""
    exit_code: int
    address: int
    size: int
    """The address where the guest wants the request or has its answer, and the number of bytes there."""
    pages: int
    """Pages of its memory at the end."""


class SeenLines(NamedTuple):
    """Checked header lines, for the next answer with the same lines."""

    block: bytes
    """The lines as the guest wrote them."""
    status: int
    """A WAGI answer's status; 0 if the lines don't have it."""
    has_type: bool
    """Whether the answer may have a body."""
    lines: bytes
    """The lines as they are sent."""


class PlainGuest(Guest):
    """A function whose plain calls the C loop can run."""

    WAGI: ClassVar[bool]
    settings: Mapping[str, str]

    def plain_settings(self) -> bytes | None:
        """Return the settings as environment variables, each ended by NUL; None if one would replace a request's
        variable."""
        if any(map(wagi.is_of_request, self.settings)):
            return None
        strings = [f"{name}={value}".encode() for name, value in self.settings.items()]
        if any(b"\0" in string for string in strings):
            return None
        return b"".join([string + b"\0" for string in strings])

    def failed(self, end: CallEnd, log: bytes) -> GuestFault:
        """Return the fault of a guest that has failed."""
        return self._fault_of(self._error(end), end, log)

    def checked(self, answer: bytes, end: CallEnd, method: str, log: bytes) -> CheckedResponse:
        """Check an answer; `answer` is empty if it doesn't lie in the guest's memory.

        Raises: GuestFault, when it can't be sent.
        """
        try:
            status, lines, body = self.decode(answer, end, method)
            if len(body) > self.limits.response_bytes:
                raise self.too_large(f"{len(body)} bytes")
        except FAILURES as error:
            raise self._fault_of(error, end, log) from None
        return status, lines, body

    @abstractmethod
    def call(self, request: Request, services: CallServices) -> Response:
        """Run one call in Python, as `Runner` says."""

    @abstractmethod
    def decode(self, answer: bytes, end: CallEnd, method: str) -> CheckedResponse:
        """Decode an answer. Raises: an error of `FAILURES`, when it isn't a valid one."""

    @abstractmethod
    def seen_lines(self, answer: bytes) -> SeenLines | None:
        """Return the header lines of a checked answer; None if other answers with these lines must be checked too."""

    @abstractmethod
    def no_room(self, end: CallEnd) -> GuestFault:
        """Return the fault of a guest that has no room for its request."""

    def _fault_of(self, error: Exception, end: CallEnd, log: bytes) -> GuestFault:
        self.program.last_pages = end.pages
        fault = self.fault(error)
        fault.log = log
        return fault

    def _error(self, end: CallEnd) -> Exception:
        match end.stop:
            case "exit":
                return Exit(exit_code(end.exit_code))
            case "output":
                return OutputTooLarge("")
            case "room":
                return self.no_room(end)
        return failed(end.result)


def seen(block: bytes, status: int, parsed: Head) -> SeenLines | None:
    """Return the lines of a head; None if it gives a length, which must be compared with each body's."""
    if len(block) > answer_head.CACHED_BYTES or parsed.length is not None:
        return None
    return SeenLines(block, status, parsed.has_content_type, parsed.lines)
