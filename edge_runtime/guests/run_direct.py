"""Run functions of the ABI `direct`: libraries whose `skerry_handle` takes a request and returns a response, each in
one piece of memory."""

from collections.abc import Mapping
from typing import ClassVar, Final

from edge_runtime.guests.abi import direct
from edge_runtime.guests.host_functions import FAILURES, RecentCache, image_of, request_unfit
from edge_runtime.guests.invocation import CallLimits, CallServices, GuestFault, Request, Response
from edge_runtime.guests.plain_guest import CallEnd, PlainGuest, SeenLines, seen
from edge_runtime.guests.wasi import Strings
from edge_runtime.ipc import answer_head
from edge_runtime.ipc.answer_head import CheckedResponse, ResponseInvalid
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.request_head import RequestUnfit
from edge_runtime.wasmedge import PAGE, Config, EntryPoint, Memory, Module

ALLOCATE: Final = EntryPoint(direct.ALLOCATE, direct.SIGNATURES[direct.ALLOCATE])
HANDLE: Final = EntryPoint(direct.HANDLE, direct.SIGNATURES[direct.HANDLE])


class Direct(PlainGuest):
    WAGI: ClassVar[bool] = False

    def __init__(
        self, local: LocalFunction, module: Module, config: Config, limits: CallLimits, settings: Mapping[str, str]
    ) -> None:
        """`settings` become the environment.

        Raises: LinkError, when the module's imports or exports don't fit.
        """
        super().__init__(local.name, module, config, limits, [ALLOCATE, HANDLE], image=image_of(local))
        self._args = Strings([local.name])
        self.settings = dict(settings)
        self._environ = _strings(settings)
        self._by_caller = RecentCache[Strings]()
        """The environments for callers' calls, by caller name and type of authentication."""

    def call(self, request: Request, services: CallServices) -> Response:
        host, limits, program, body = self.host, self.limits, self.program, request.body
        wasi, memory = host.wasi, host.memory
        head = request.block or self._head(request)
        host.serve(services)
        environ = self._environment(request) if request.caller else self._environ
        wasi.begin(self._args, environ, b"", None, limits.log_bytes)
        try:
            program.open(memory)
            failed = True
            try:
                head_size = len(head)
                size = head_size + len(body)
                address = program.call(ALLOCATE, size)
                if not address or address + size > memory.size:
                    _check_room(memory, address, size)
                window = memory.buffer
                window[address : address + head_size] = head
                window[address + head_size : address + size] = body
                answer = program.call(HANDLE, address, size)
                start, size = answer >> 32, answer & 0xFFFFFFFF
                if size > limits.response_bytes + direct.ANSWER_HEAD:
                    raise self.too_large(f"{size} bytes")
                if start + size > memory.size:
                    _check_answer(memory, start + size)
                status, head, body = direct.decode(memory.buffer, start, size, request.method)
                failed = False
            finally:
                program.end(failed)
            if len(body) > limits.response_bytes:
                raise self.too_large(f"{len(body)} bytes")
        except FAILURES as error:
            raise self.fault(error) from None
        return Response(status, head, body, wasi.stderr)

    def decode(self, answer: bytes, end: CallEnd, method: str) -> CheckedResponse:
        if end.size > self.limits.response_bytes + direct.ANSWER_HEAD:
            raise self.too_large(f"{end.size} bytes")
        if end.address + end.size > end.pages * PAGE:
            _check_answer(_memory_of(end), end.address + end.size)
        return direct.decode(answer, 0, end.size, method)

    def seen_lines(self, answer: bytes) -> SeenLines | None:
        block = direct.header_lines(answer)
        return seen(block, 0, answer_head.parse(block))

    def no_room(self, end: CallEnd) -> GuestFault:
        try:
            _check_room(_memory_of(end), end.address, end.size)
        except GuestFault as fault:
            return fault
        raise AssertionError("there is room")

    def _environment(self, request: Request) -> Strings:
        """Return the environment for a caller's calls. The settings come last, as in WAGI."""
        key = request.caller, request.auth_type
        return self._by_caller.get(key) or self._by_caller.keep(
            key, _strings({**request.caller_variables(), **self.settings})
        )

    def _head(self, request: Request) -> bytes:
        try:
            return direct.encode(request, self.name)
        except RequestUnfit as error:
            raise request_unfit(error) from None


def _strings(variables: Mapping[str, str]) -> Strings:
    return Strings([f"{name}={value.encode().decode('latin-1')}" for name, value in variables.items()])


def _memory_of(end: CallEnd) -> Memory:
    """Return a memory of the size that the guest's memory had at the end of a call."""
    memory = Memory()
    memory.size = end.pages * PAGE
    return memory


def _check_room(memory: Memory, address: int, size: int) -> None:
    if not address:
        raise GuestFault("guest_call_invalid", f"Its skerry_alloc had no room for the request of {size} bytes.")
    try:
        memory.need(address + size)
    except IndexError as error:
        raise GuestFault("guest_call_invalid", f"Its skerry_alloc gave no room for the request: {error}.") from None


def _check_answer(memory: Memory, end: int) -> None:
    try:
        memory.need(end)
    except IndexError as error:
        raise ResponseInvalid(f"it gave a place outside its memory: {error}") from None
