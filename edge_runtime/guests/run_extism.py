"""Functions that are Extism plug-ins: the body of a request is the input of one of their functions, and its output
that of the answer.

Their kernel is in the module itself (`abi.merge`); what they ask of the host is in `extism_host`.
"""

import functools
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from edge_runtime.guests.abi import extism
from edge_runtime.guests.abi.merge import KERNEL_MEMORY
from edge_runtime.guests.extism_host import ExtismHost
from edge_runtime.guests.host_functions import FAILURES, Guest, host
from edge_runtime.guests.invocation import CallLimits, GuestFault, Request, Response, Services
from edge_runtime.guests.wasi import Exit, Strings
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.wasmedge import Config, EntryPoint, LoadError, Module, Trap

CONTENT_TYPE: Final = "content-type"
"""The name in `config` that says what the answers are."""
_VALUE = re.compile(r"[\x20-\x7e]+")
_WORDS: Final = 4096
"""Bytes that are told of an error."""
_NO_ENVIRONMENT = Strings(())


class Extism(Guest):
    def __init__(
        self, local: LocalFunction, module: Module, config: Config, limits: CallLimits, settings: Mapping[str, str]
    ) -> None:
        """`settings` are what plug-ins call their config. Errors: LinkError, LoadError."""
        super().__init__(local.name, module, config, limits, [], extism_host().imports, KERNEL_MEMORY)
        functions = self.program.functions
        self._entries = {
            name: EntryPoint(name, signature)
            for name, signature in functions.items()
            if extism.is_entry(name, signature)
        }
        self._initializers = [
            (EntryPoint(name, functions[name]), (0,) * len(functions[name][0]))
            for name in extism.initializers(functions)
        ]
        self._default = local.manifest.entry
        self._config = {name.encode(): value.encode() for name, value in settings.items()}
        self._args = Strings([local.name])
        kind = settings.get(CONTENT_TYPE, "application/octet-stream")
        if not _VALUE.fullmatch(kind):
            # Not the value: it may be a secret's.
            raise LoadError(0, f"its {CONTENT_TYPE} has a character that no header can have, or none at all")
        self._head = f"content-type: {kind}\r\n".encode()

    def call(self, request: Request, services: Services) -> Response:
        entry, limits, program = self._entry(request), self.limits, self.program
        memory, wasi, asked = self.host.memory, self.host.wasi, extism_host()
        blocks = asked.blocks
        self.host.serve(services)
        asked.begin(services, self._config)
        wasi.begin(self._args, _NO_ENVIRONMENT, b"", None, limits.log_bytes)
        try:
            with program.open(memory, blocks.memory):
                try:
                    for initializer, zeros in self._initializers:
                        program.call(initializer, *zeros)
                    blocks.set_input(request.body)
                    status = program.call(entry)
                    status -= (status & 0x80000000) << 1
                except Exit as ended:
                    status = ended.code
                except Trap as trap:
                    raise _own_words(blocks.error()) or trap from None
                if error := _own_words(blocks.error()):
                    raise error
                if status:
                    raise GuestFault("guest_error", f"It returned {status} from {entry.name}, and set no error.")
                if (length := blocks.output_length()) > limits.response_bytes:
                    raise self.too_large(f"{length} bytes")
                body = blocks.output()
        except FAILURES as failure:
            raise self.fault(failure) from None
        return Response(200, self._head, body, wasi.stderr)

    def _entry(self, request: Request) -> EntryPoint:
        """The function to call: the last part of the path, or the manifest's where the path has none or is a route."""
        named = "" if request.route else unquote(request.path.rstrip("/").rpartition("/")[2])
        found = self._entries.get(named or self._default)
        if found is None:
            what = f"no function {named or self._default}" if named or self._default else "no default (`entry`)"
            text = f"The plug-in {self.name} has {what}; it has {', '.join(sorted(self._entries))}."
            raise GuestFault("entry_unknown", text)
        return found


def _own_words(error: bytes | None) -> GuestFault | None:
    return GuestFault("guest_error", f"It says: {error[:_WORDS].decode(errors='replace')}") if error else None


@functools.cache
def extism_host() -> ExtismHost:
    """The process's."""
    return ExtismHost(host().wasi)
