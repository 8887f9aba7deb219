"""Runs one call of one loaded function: the request into a fresh instance, and its answer or its fault out.

One guest runs at a time in a process (see `wasmedge.instance`), so the host side of all functions is made once.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import orjson

from .abi import wagi
from .abi.imports import SQL_MODULE, SQL_SIGNATURES
from .abi.wagi import Request, Response
from .wasi import FAULT, MODULE, Exit, OutputTooLarge, Strings, Wasi
from .wasmedge import (
    Config,
    HostModule,
    LinkError,
    Memory,
    Module,
    Program,
    Signature,
    Trap,
    check_address_space,
    verify,
)

__all__ = ["Function", "GuestFault", "Limits", "Request", "Response", "Sql", "prepare"]

ENTRY = "_start"


class Sql(Protocol):
    """The call's database: JSON in, JSON out, the errors of a statement included. What it raises ends the guest, and
    the call raises it."""

    def execute(self, request: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may use. `memory_pages` of 64 KiB; the rest in bytes."""

    memory_pages: int = 1024
    response_bytes: int = 8 * 1024 * 1024
    """Of the body."""
    log_bytes: int = 16 * 1024
    """Of stderr; what comes after is dropped."""


class GuestFault(Exception):
    """The guest failed its request: `code` is stable, `status` what HTTP answers, `log` what it wrote to stderr."""

    def __init__(self, code: str, message: str, status: int = 502, log: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.log = log


@dataclass(eq=False)
class _Host:
    """The host functions that guests import, and the state of the one call that runs."""

    memory: Memory = field(default_factory=Memory)
    sql: Sql | None = None
    answer: bytes | None = None

    def __post_init__(self) -> None:
        self.wasi = Wasi(self.memory)
        functions: dict[str, tuple[Signature, Callable[..., Any]]] = {
            "sql": (SQL_SIGNATURES["sql"], self._sql),
            "result": (SQL_SIGNATURES["result"], self._result),
        }
        self.imports = (
            HostModule(MODULE, self.wasi.functions(), out_of_bounds=FAULT),
            HostModule(SQL_MODULE, functions),
        )

    def _sql(self, start: int, length: int) -> int:
        try:
            asked = self.memory.read(start, length)
        except IndexError as error:
            raise GuestFault(
                "guest_call_invalid", f"It called skerry.sql with a request outside its memory: {error}."
            ) from None
        if self.sql is None:
            self.answer = _NOT_GRANTED
        else:
            self.answer = self.sql.execute(asked)
        return len(self.answer)

    def _result(self, start: int) -> None:
        answer, self.answer = self.answer, None
        if answer is None:
            raise GuestFault("guest_call_invalid", "It called skerry.result, and no answer of skerry.sql was waiting.")
        try:
            self.memory.write(start, answer)
        except IndexError as error:
            raise GuestFault(
                "guest_call_invalid", f"It called skerry.result with a place outside its memory: {error}."
            ) from None


_NOT_GRANTED = orjson.dumps(
    {
        "error": {
            "code": "not_granted",
            "message": "This function's manifest grants it no SQL: set `sql` to read or write.",
        }
    }
)


@functools.cache
def _host() -> _Host:
    return _Host()


def prepare() -> None:
    """Check the process (Unsafe where no guest may run in it), and make what all functions share: before a fork, so
    that the children have it."""
    check_address_space()
    _host()


class Function:
    """A version of a function, loaded; lives as long as the worker serves it."""

    def __init__(self, name: str, program: Program, limits: Limits, config: Mapping[str, str]) -> None:
        self.name = name
        self.limits = limits
        self._program = program
        self._config = dict(config)
        self._script = f"/functions/{name}"
        self._args = Strings([name])

    @classmethod
    def load(
        cls, name: str, aot_path: Path, aot_digest: str, limits: Limits, config: Mapping[str, str] | None = None
    ) -> Self:
        """Load what `wasmedge.compile_module` made, after a check of its digest. `config` becomes environment.

        Errors: Damaged (compile again), LoadError, LinkError, OSError.
        """
        verify(aot_path, aot_digest)
        settings = Config(memory_pages=limits.memory_pages)
        program = Program(Module.from_file(aot_path, settings), settings, _host().imports, ENTRY)
        return cls(name, program, limits, config or {})

    def call(self, request: Request, sql: Sql | None) -> Response:
        """Run one call in a fresh instance. `sql` is None where the manifest grants none.

        Errors: GuestFault; what `sql.execute` raised, unchanged; Unsafe (the worker is not fit to run guests).
        """
        host, limits = _host(), self.limits
        wasi = host.wasi
        try:
            environ = Strings(wagi.environment(request, self.name, self._script, self._config))
        except (wagi.RequestUnfit, UnicodeEncodeError) as error:
            raise GuestFault("request_unfit", f"The request can't be handed to a function: {error}.", 400) from None
        host.sql, host.answer = sql, None
        wasi.begin(self._args, environ, request.body, limits.response_bytes + wagi.HEAD_LIMIT, limits.log_bytes)
        try:
            self._program.run(host.memory)
        except Exit as ended:
            if ended.code:
                raise self._fault("guest_exit", f"It ended with the exit code {ended.code}.") from None
        except Trap as trap:
            raise self._fault("guest_trap", self._trapped(trap)) from None
        except LinkError as error:
            raise self._fault("guest_unlinkable", f"It can't be instantiated: {error}.") from None
        except OutputTooLarge:
            raise self._fault("response_too_large", self._too_large("more"), 507) from None
        except GuestFault as fault:
            raise self._fault(fault.code, str(fault)) from None
        finally:
            host.sql = host.answer = None
        try:
            answered = wagi.parse_response(wasi.stdout, request.method)
        except wagi.ResponseInvalid as error:
            raise self._fault("guest_response_invalid", f"Its response is invalid: {error}.") from None
        if len(answered.body) > limits.response_bytes:
            raise self._fault("response_too_large", self._too_large(f"{len(answered.body)} bytes"), 507)
        return Response(answered.status, answered.headers, answered.body, wasi.stderr)

    def close(self) -> None:
        """Unload it."""
        self._program.close()

    def _fault(self, code: str, message: str, status: int = 502) -> GuestFault:
        return GuestFault(code, f"The function {self.name} failed. {message}", status, _host().wasi.stderr)

    def _too_large(self, size: str) -> str:
        return f"It answered {size}; its manifest's response_limit is {self.limits.response_bytes} bytes."

    def _trapped(self, trap: Trap) -> str:
        pages, limit = self._program.last_pages, self.limits.memory_pages
        return (
            f"It trapped: {trap}. Its memory had {pages} of the {limit} pages (64 KiB each) that its manifest's "
            "memory_pages allows; a guest that was refused more shows itself by such a trap of its own."
        )
