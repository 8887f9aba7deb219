"""Run Extism plug-ins: the body of a request is the input of one of the plug-in's functions, and its output the body
of the response.

The Extism kernel is merged into the module (`abi.merge`); the other host functions are in `extism_host`.
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
from edge_runtime.guests.invocation import CallLimits, CallServices, GuestFault, Request, Response
from edge_runtime.guests.wasi import Exit, Strings
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.wasmedge import Config, EntryPoint, LoadError, Module, Trap

CONTENT_TYPE: Final = "content-type"
"""The name in `config` for the Content-Type of all responses."""
_VALUE = re.compile(r"[\x20-\x7e]+")
_ERROR_BYTES: Final = 4096
"""Bytes of a plug-in's error text that are passed on."""
_NO_ENVIRONMENT = Strings(())


class Extism(Guest):
    def __init__(
        self, local: LocalFunction, module: Module, config: Config, limits: CallLimits, settings: Mapping[str, str]
    ) -> None:
        """`settings` become what plug-ins call their config.

        Raises: LinkError, when the module's imports or exports don't fit; LoadError, when the Content-Type in
        `settings` isn't valid.
        """
        imports = extism_host().imports
        super().__init__(local.name, module, config, limits, [], imports, KERNEL_MEMORY, initialize=False)
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
            # The message leaves out the value, which may be that of a secret.
            raise LoadError(0, f"its {CONTENT_TYPE} has a character that no header can have, or none at all")
        self._head = f"content-type: {kind}\r\n".encode()

    def call(self, request: Request, services: CallServices) -> Response:
        entry, limits, program = self._entry(request), self.limits, self.program
        memory, wasi, plugin_host = self.host.memory, self.host.wasi, extism_host()
        blocks = plugin_host.blocks
        self.host.serve(services)
        plugin_host.begin(services, self._config_of(request) if request.caller else self._config)
        wasi.begin(self._args, _NO_ENVIRONMENT, b"", None, limits.log_bytes)
        try:
            with program.open(memory, blocks.memory):
                for initializer, zeros in self._initializers:
                    program.call(initializer, *zeros)
                blocks.set_input(request.body)
                try:
                    status = program.call(entry)
                    status -= (status & 0x80000000) << 1
                except Exit as ended:
                    status = ended.code
                except (Trap, GuestFault) as failed:
                    raise _plugin_error(blocks.error()) or failed from None
                if error := _plugin_error(blocks.error()):
                    raise error
                if status:
                    raise GuestFault("guest_error", f"It returned {status} from {entry.name}, and set no error.")
                if (length := blocks.output_length()) > limits.response_bytes:
                    raise self.too_large(f"{length} bytes")
                body = blocks.output()
        except FAILURES as failure:
            raise self.fault(failure) from None
        return Response(200, self._head, body, wasi.stderr)

    def _config_of(self, request: Request) -> dict[bytes, bytes]:
        """Return the config for a caller's call. The settings come last, as in WAGI."""
        variables = request.caller_variables().items()
        return {**{name.encode(): value.encode() for name, value in variables}, **self._config}

    def _entry(self, request: Request) -> EntryPoint:
        """Return the function to call: the last part of the path names it; if that is empty or the call came by a
        route, the manifest does.

        Raises: GuestFault, when the plug-in has no such function.
        """
        named = "" if request.route else unquote(request.path.rstrip("/").rpartition("/")[2])
        entry = self._entries.get(named or self._default)
        if entry is None:
            what = f"no function {named or self._default}" if named or self._default else "no default (`entry`)"
            text = f"The plug-in {self.name} has {what}; it has {', '.join(sorted(self._entries))}."
            raise GuestFault("entry_unknown", text)
        return entry


def _plugin_error(error: bytes | None) -> GuestFault | None:
    return GuestFault("guest_error", f"It says: {error[:_ERROR_BYTES].decode(errors='replace')}") if error else None


@functools.cache
def extism_host() -> ExtismHost:
    """Return this process's only `ExtismHost`."""
    return ExtismHost(host().wasi)
