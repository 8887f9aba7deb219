"""Run functions of the ABI WAGI: programs whose `_start` reads the request from its environment and stdin, and writes
the response to stdout."""

from collections.abc import Mapping
from typing import ClassVar, Final

from edge_runtime.guests.abi import wagi
from edge_runtime.guests.host_functions import FAILURES, RecentCache, image_of, request_unfit
from edge_runtime.guests.invocation import CallLimits, CallServices, GuestFault, Request, Response
from edge_runtime.guests.plain_guest import CallEnd, PlainGuest, SeenLines, seen
from edge_runtime.guests.wasi import Exit, Strings
from edge_runtime.ipc import answer_head
from edge_runtime.ipc.answer_head import LIMIT, CheckedResponse
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.request_head import RequestUnfit
from edge_runtime.wasmedge import Config, EntryPoint, Module

START: Final = EntryPoint("_start")


class Wagi(PlainGuest):
    WAGI: ClassVar[bool] = True

    def __init__(
        self, local: LocalFunction, module: Module, config: Config, limits: CallLimits, settings: Mapping[str, str]
    ) -> None:
        """`settings` become environment variables.

        Raises: LinkError, when the module's imports or exports don't fit.
        """
        super().__init__(local.name, module, config, limits, [START], image=image_of(local))
        self.settings = dict(settings)
        self._recent = RecentCache[tuple[Strings, Strings]]()

    def call(self, request: Request, services: CallServices) -> Response:
        host, limits, program = self.host, self.limits, self.program
        wasi = host.wasi
        args, environ = self._recent.get((request.key, len(request.body))) or self._encode(request)
        host.serve(services)
        wasi.begin(args, environ, request.body, limits.response_bytes + LIMIT, limits.log_bytes)
        try:
            try:
                program.open(host.memory)
                failed = True
                try:
                    program.call(START)
                    failed = False
                finally:
                    program.end(failed)
            except Exit as ended:
                if ended.code:
                    raise
            status, head, body = wagi.parse_response(wasi.stdout, request.method)
            if len(body) > limits.response_bytes:
                raise self.too_large(f"{len(body)} bytes")
        except FAILURES as error:
            raise self.fault(error) from None
        return Response(status, head, body, wasi.stderr)

    def decode(self, answer: bytes, end: CallEnd, method: str) -> CheckedResponse:
        return wagi.parse_response(answer, method)

    def seen_lines(self, answer: bytes) -> SeenLines | None:
        block = wagi.header_lines(answer)
        parsed = answer_head.parse(block)
        return seen(block, wagi.status_of(parsed), parsed)

    def no_room(self, end: CallEnd) -> GuestFault:
        raise AssertionError("a program reads its request as it goes")

    def _encode(self, request: Request) -> tuple[Strings, Strings]:
        """Return the arguments and the environment for a request."""
        try:
            arguments = wagi.arguments(request, self.name)
            strings = Strings(arguments), Strings(wagi.environment(request, self.name, self.settings))
        except (RequestUnfit, UnicodeEncodeError) as error:
            raise request_unfit(error) from None
        # The length of the body is one of the variables, so it is part of the key.
        return self._recent.keep((request.key, len(request.body)), strings) if request.key else strings
