"""What the runners of all ABIs share: the host functions that guests import, and the error for each way that a guest
can fail.

One guest runs at a time in a process (see `wasmedge.instance`), so the host modules are made once and serve all
functions.
"""

import functools
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import ClassVar, Final, Generic, Protocol, TypeVar

import orjson

from control.protocol.counts import counted
from edge_runtime.guests.abi.imports import OWN_SIGNATURES, SKERRY, WASI
from edge_runtime.guests.invocation import CallLimits, CallServices, GuestFault, Request, Response
from edge_runtime.guests.wasi import FAULT, Exit, OutputTooLarge, Wasi
from edge_runtime.ipc.answer_head import ResponseInvalid
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.native import library as native
from edge_runtime.wasmedge import (
    Config,
    EntryPoint,
    HostFunction,
    HostModule,
    Image,
    LinkError,
    Memory,
    Module,
    Program,
    Signature,
    Trap,
)

NOTHING: Final = CallServices()

FAILURES: Final = (Exit, Trap, LinkError, OutputTooLarge, ResponseInvalid, GuestFault)
"""The errors that a guest can cause; `Guest.fault` turns each into a GuestFault."""


Value = TypeVar("Value")


class RecentCache(dict[Hashable, Value], Generic[Value]):
    """A cache of the `KEPT` newest values that were made from a request's head, for later requests with that head."""

    KEPT: ClassVar[int] = 64

    def keep(self, key: Hashable, value: Value) -> Value:
        if len(self) >= self.KEPT:
            del self[next(iter(self))]
        self[key] = value
        return value


class Runner(Protocol):
    """A loaded function of one ABI."""

    def call(self, request: Request, services: CallServices) -> Response:
        """Run one call in a fresh instance.

        Raises: GuestFault, when the guest fails; what a service raised, unchanged; Unsafe, when this worker can't run
        guests.
        """

    def close(self) -> None:
        """Unload the function."""


class Host:
    """The host functions that guests import, with the state of the running call."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.wasi = Wasi(self.memory)
        self._services = NOTHING
        self._answer: bytes | None = None
        functions: dict[str, HostFunction] = {"sql": self._sql, "http": self._http, "result": self._result}
        own_functions: dict[str, tuple[Signature, HostFunction]] = {
            name: (signature, functions[name]) for name, signature in OWN_SIGNATURES.items()
        }
        replace = None if native.unusable() else native.host_function
        self.imports = (
            HostModule(WASI, self.wasi.functions(), out_of_bounds=FAULT, replace=replace),
            HostModule(SKERRY, own_functions, replace=replace),
        )

    def serve(self, services: CallServices) -> None:
        """Set the services of a new call."""
        self._services, self._answer = services, None

    def _sql(self, start: int, length: int) -> int:
        request = self._request("sql", start, length)
        sql = self._services.sql
        self._answer = not_granted("SQL", "`sql` to read or write") if sql is None else sql.execute(request)
        return len(self._answer)

    def _http(self, start: int, length: int) -> int:
        request = self._request("http", start, length)
        http = self._services.http
        self._answer = not_granted("HTTP", "`http`, with the hosts") if http is None else http.fetch(request)
        return len(self._answer)

    def _request(self, name: str, start: int, length: int) -> bytes:
        try:
            return self.memory.read(start, length)
        except IndexError as error:
            raise GuestFault(
                "guest_call_invalid", f"It called skerry.{name} with a request outside its memory: {error}."
            ) from None

    def _result(self, start: int) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            raise GuestFault("guest_call_invalid", "It called skerry.result, and no answer was waiting.")
        try:
            self.memory.write(start, answer)
        except IndexError as error:
            raise GuestFault(
                "guest_call_invalid", f"It called skerry.result with a place outside its memory: {error}."
            ) from None


@functools.cache
def not_granted(what: str, cure: str) -> bytes:
    """Return the answer for a guest whose manifest doesn't grant it `what`."""
    message = f"This function's manifest grants it no {what}: set {cure}."
    return orjson.dumps({"error": {"code": "not_granted", "message": message}})


@functools.cache
def host() -> Host:
    """Return this process's only `Host`."""
    return Host()


class Guest:
    """A loaded and linked module: what the runners have in common, whatever the ABI."""

    def __init__(
        self,
        name: str,
        module: Module,
        config: Config,
        limits: CallLimits,
        entries: Sequence[EntryPoint],
        imports: Sequence[HostModule] = (),
        second_memory: str = "",
        *,
        initialize: bool = True,
        image: Image | None = None,
    ) -> None:
        """Link the module. `imports` are the ABI's host modules in addition to WASI and `skerry`; for the rest see
        `Program`. An image is mapped at once, so that a damaged one is found here.

        Raises: LinkError, when the module's imports or exports don't fit; what `Program.reserve` raises.
        """
        self.name = name
        self.limits = limits
        self.host = host()
        self.program = Program(
            module, config, (*self.host.imports, *imports), entries, second_memory, initialize=initialize, image=image
        )
        if image is not None:
            self.program.reserve()

    def close(self) -> None:
        self.program.close()

    def fault(self, error: Exception) -> GuestFault:
        """Return the error for a call that ended with one of `FAILURES`."""
        pages, limit = self.program.last_pages, self.limits.memory_pages
        match error:
            case GuestFault():
                return self._fault(error.code, str(error))
            case Exit():
                return self._fault("guest_exit", f"It ended with the exit code {error.code}.")
            case OutputTooLarge():
                return self.fault(self.too_large("more"))
            case ResponseInvalid():
                return self._fault("guest_response_invalid", f"Its response is invalid: {error}.")
            case LinkError():
                return self._fault("guest_unlinkable", f"It can't be instantiated: {error}.")
        code = error.code & 0xFFFF if isinstance(error, Trap) else 0
        return self._fault(
            "guest_trap",
            f"It trapped: {error} ({code:#x}). Its memory had {pages} of {counted(limit, 'page')} (64 KiB each) that "
            "its manifest's memory_pages allows; a guest that was refused more shows itself by such a trap of its own.",
        )

    def _fault(self, code: str, message: str) -> GuestFault:
        return GuestFault(code, f"The function {self.name} failed. {message}", self.host.wasi.stderr)

    def too_large(self, size: str) -> GuestFault:
        """Return the error for a body that is larger than the manifest allows. `size` says how large it is."""
        text = f"It answered {size}; its manifest's response_limit is {self.limits.response_bytes} bytes."
        return GuestFault("response_too_large", text)


def image_of(local: LocalFunction) -> Image | None:
    """Return the image of a snapshot that is split; None for any other module."""
    return Image(Path(local.image), local.image_digest, local.image_pages) if local.image else None


def request_unfit(error: Exception) -> GuestFault:
    """Return the error for a request that the ABI can't express."""
    return GuestFault("request_unfit", f"The request can't be handed to a function: {error}.")
