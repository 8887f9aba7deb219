"""What Extism's own host makes of calls of a plug-in, to compare with. Always in a process of its own
(`by_wasmtime.apart`), since it brings wasmtime."""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge_runtime.guests.guest import CallServices, GuestFault, LoadedFunction, Request
from edge_runtime.guests.host_functions import not_granted
from edge_runtime.ipc.log_lines import PREFIXES

ENDS = {
    "guest_trap": "trap",
    "guest_call_invalid": "refused",
    "guest_vars_full": "refused",
    "guest_http_failed": "refused",
    "entry_unknown": "refused",
    "guest_exit": "code",
}


class Call(NamedTuple):
    """A call of an export."""

    name: str
    data: bytes = b""


class End(NamedTuple):
    """How a call ended, in words that both hosts share."""

    how: str
    """`answer`, `error` (which the plug-in set), `code` (other than 0), `trap`, or `refused`: a call of the host with
    wrong arguments, or no such function."""
    data: bytes = b""
    """The answer, the text of the error, or the code."""
    log: bytes = b""
    """Its log, as a node has it."""


def by_node(loaded: LoadedFunction, call: Call, services: CallServices | None = None) -> End:
    """How a call ends on a node."""
    try:
        answer = loaded.call(Request("POST", f"/{call.name}", body=call.data), services or CallServices())
    except GuestFault as fault:
        text = str(fault).removeprefix("The function f failed. ")
        if code := re.match(r"It returned (-?\d+) from|It ended with the exit code (-?\d+)", text):
            return End("code", (code[1] or code[2]).encode(), fault.log)
        if fault.code == "guest_error":
            return End("error", text.removeprefix("It says: ").encode(), fault.log)
        return End(ENDS.get(fault.code, fault.code), b"", fault.log)
    return End("answer", answer.body, answer.log)


def alike(theirs: End) -> End:
    """Without the words in which the reference host refuses a call."""
    return theirs._replace(data=b"") if theirs.how == "refused" else theirs


def calls(
    wasm: bytes,
    asked: Sequence[Call],
    config: Mapping[str, str],
    hosts: Sequence[str] = (),
    kept: bool = False,
    pages: int = 0,
) -> list[End]:
    """How calls end. Each has a plug-in of its own, as on a node; one for all of them where it is to be `kept`. `pages`
    is the most memory that it may have, 0 for as much as it wants."""
    import extism

    ends: list[End] = []
    plugin = None
    for call in asked:
        try:
            if plugin is None or not kept:
                # Its initialization runs here already, for the first time.
                plugin = _plugin(_compiled(wasm, tuple(config.items()), tuple(hosts), pages))
        except extism.Error as error:
            ends.append(End("refused", str(error).encode()))
        else:
            ends.append(_end(plugin, call))
    return ends


def without_headers(wasm: bytes, call: Call) -> End:
    """How a call ends where the host doesn't let plug-ins see the headers of answers, as it is by default."""
    import extism

    return _end(extism.Plugin(_compiled(wasm, (), (), 0)), call)


@functools.lru_cache(8)
def _compiled(wasm: bytes, config: tuple[tuple[str, str], ...], hosts: tuple[str, ...], pages: int) -> Any:
    from extism.extism import CompiledPlugin

    # Otherwise it would keep compiled code in the home folder.
    os.environ["EXTISM_CACHE_CONFIG"] = ""
    memory = {"max_pages": pages} if pages else {}
    manifest = {"wasm": [{"data": wasm}], "config": dict(config), "allowed_hosts": list(hosts), "memory": memory}
    return CompiledPlugin(manifest, wasi=True, functions=_users())


@functools.cache
def _users() -> list[Any]:
    """A node's own functions for plug-ins, where nothing is granted."""
    import extism
    from extism.extism import HOST_FN_REGISTRY

    refusals = (
        ("sql", not_granted("SQL", "`sql` to read or write")),
        ("http", not_granted("HTTP", "`http`, with the hosts")),
    )
    for name, answer in refusals:

        def refuse(plugin: Any, _: Any, results: Any, *more: Any, answer: bytes = answer) -> None:
            plugin.return_bytes(results[0], answer)

        pointer = [extism.ValType.I64]
        extism.host_fn(name, "extism:host/user", (pointer, pointer))(refuse)
    return list(HOST_FN_REGISTRY)


def _plugin(compiled: Any) -> Any:
    import extism
    from extism_sys import lib

    plugin = extism.Plugin(compiled)
    lib.extism_plugin_allow_http_response_headers(plugin.plugin)
    return plugin


_BROKEN_OFF = b"error while executing"


def _end(plugin: Any, call: Call) -> End:
    from extism_sys import ffi, lib

    logs = _logs()
    code = lib.extism_plugin_call(plugin.plugin, call.name.encode(), call.data, len(call.data))
    found = lib.extism_plugin_error(plugin.plugin)
    error = ffi.string(found) if found != ffi.NULL else b""
    log = _read(logs)
    if code == 134:
        return End("trap", b"", log)
    if code > 0 and (not error or error.startswith(_BROKEN_OFF)):
        return End("code", b"%d" % code, log)
    if error.startswith((_BROKEN_OFF, b"Function not found", b"failed to")) or (
        # The error that the plug-in had set, and whose block it has freed, stands before the host's words.
        code == -1 and found != ffi.NULL and not error
    ):
        return End("refused", error, log)
    if error:
        return End("error", error, log)
    if code:
        return End("code", b"%d" % code, log)
    size = lib.extism_plugin_output_length(plugin.plugin)
    return End("answer", ffi.buffer(lib.extism_plugin_output_data(plugin.plugin), size)[:] if size else b"", log)


_drained: list[bytes] = []


@functools.cache
def _logs() -> Any:
    """The callback that takes Extism's log lines, which are kept from here on."""
    from extism_sys import ffi, lib

    lib.extism_log_custom(b"extism::pdk=trace,extism::plugin=off")

    def line(text: Any, size: int) -> None:
        _drained.append(ffi.buffer(text, size)[:])

    return ffi.callback("void(char*, ExtismSize)", line)


_LINE = re.compile(rb"\S+ +(TRACE|DEBUG|INFO|WARN|ERROR) extism::pdk: (.*) plugin=\"[0-9a-f-]+\"\n", re.DOTALL)


def _read(logs: Any) -> bytes:
    """The lines since the last call, as a node has them in a call's log."""
    from extism_sys import lib

    _drained.clear()
    lib.extism_log_drain(logs)
    found = [_LINE.fullmatch(line) for line in _drained]
    return b"".join([PREFIXES[line[1].decode().lower()] + line[2] + b"\n" for line in found if line])
