"""What the runners of all ABIs share: the host functions that guests import, and what each way to fail is called.

One guest runs at a time in a process (see `wasmedge.instance`), so the host side of all functions is made once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

import orjson

from edge_runtime.guests.abi.head import ResponseInvalid
from edge_runtime.guests.abi.imports import OWN_SIGNATURES, SKERRY
from edge_runtime.guests.invocation import CallLimits, GuestFault, Request, Response, Services
from edge_runtime.guests.wasi import FAULT, MODULE, Exit, OutputTooLarge, Wasi
from edge_runtime.wasmedge import Config, EntryPoint, HostModule, LinkError, Memory, Module, Program, Signature, Trap

NOTHING: Final = Services()

FAILURES: Final = (Exit, Trap, LinkError, OutputTooLarge, ResponseInvalid, GuestFault)
"""What a guest can bring about: `Guest.fault` has the error for each."""


Value = TypeVar("Value")


class RecentCache(dict[Any, Value], Generic[Value]):
    """The newest values, so many: what is made of a request's head, for the next request with the same one."""

    KEPT: ClassVar[int] = 64

    def keep(self, key: Any, value: Value) -> Value:
        if len(self) >= self.KEPT:
            del self[next(iter(self))]
        self[key] = value
        return value


class Runner(Protocol):
    """A loaded function, in the manner of its ABI."""

    def call(self, request: Request, services: Services) -> Response:
        """One call, in a fresh instance. Errors: GuestFault; what a service raised, unchanged; Unsafe (the worker is
        not fit to run guests)."""

    def close(self) -> None:
        """Unload it."""


class Host:
    """The host functions that guests import, and the state of the one call that runs."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.wasi = Wasi(self.memory)
        self._services = NOTHING
        self._answer: bytes | None = None
        functions: dict[str, Callable[..., Any]] = {"sql": self._sql, "http": self._http, "result": self._result}
        signed: dict[str, tuple[Signature, Callable[..., Any]]] = {
            name: (signature, functions[name]) for name, signature in OWN_SIGNATURES.items()
        }
        self.imports = (HostModule(MODULE, self.wasi.functions(), out_of_bounds=FAULT), HostModule(SKERRY, signed))

    def serve(self, services: Services) -> None:
        """Of these the guest may ask from here on."""
        self._services, self._answer = services, None

    def _sql(self, start: int, length: int) -> int:
        asked = self._asked("sql", start, length)
        sql = self._services.sql
        self._answer = not_granted("SQL", "`sql` to read or write") if sql is None else sql.execute(asked)
        return len(self._answer)

    def _http(self, start: int, length: int) -> int:
        asked = self._asked("http", start, length)
        http = self._services.http
        self._answer = not_granted("HTTP", "`http`, with the hosts") if http is None else http.fetch(asked)
        return len(self._answer)

    def _asked(self, name: str, start: int, length: int) -> bytes:
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
    """The answer where a manifest grants nothing."""
    message = f"This function's manifest grants it no {what}: set {cure}."
    return orjson.dumps({"error": {"code": "not_granted", "message": message}})


@functools.cache
def host() -> Host:
    """The process's."""
    return Host()


class Guest:
    """A module that is loaded and linked, to be called by its entries; the runners' part that knows no ABI."""

    def __init__(
        self,
        name: str,
        module: Module,
        config: Config,
        limits: CallLimits,
        entries: Sequence[EntryPoint],
        imports: Sequence[HostModule] = (),
        second_memory: str = "",
    ) -> None:
        """`imports`: what the ABI has beside WASI and `skerry`. Error: LinkError."""
        self.name = name
        self.limits = limits
        self.host = host()
        self.program = Program(module, config, (*self.host.imports, *imports), entries, second_memory)

    def close(self) -> None:
        self.program.close()

    def fault(self, error: Exception) -> GuestFault:
        """What a call is told that ended by one of `FAILURES`."""
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
        return self._fault(
            "guest_trap",
            f"It trapped: {error}. Its memory had {pages} of the {limit} pages (64 KiB each) that its manifest's "
            "memory_pages allows; a guest that was refused more shows itself by such a trap of its own.",
        )

    def _fault(self, code: str, message: str) -> GuestFault:
        return GuestFault(code, f"The function {self.name} failed. {message}", self.host.wasi.stderr)

    def too_large(self, size: str) -> GuestFault:
        """To be raised where the body is larger than it may be."""
        text = f"It answered {size}; its manifest's response_limit is {self.limits.response_bytes} bytes."
        return GuestFault("response_too_large", text)


def request_unfit(error: Exception) -> GuestFault:
    """For a request that the ABI can't express."""
    return GuestFault("request_unfit", f"The request can't be handed to a function: {error}.")
