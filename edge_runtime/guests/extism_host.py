"""Host functions for Extism plug-ins: config, vars, log, HTTP and SQL.

All data passes through blocks of the kernel's memory. The host frees the blocks that a plug-in hands to Extism's
functions, and only after it has allocated the block of the answer: some PDKs free their own block once more, and would
otherwise free that of the answer, where the memory is full and its block is used again.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Final

import orjson

from edge_runtime.guests.abi import extism
from edge_runtime.guests.extism_memory import Blocks
from edge_runtime.guests.host_functions import NOTHING, not_granted
from edge_runtime.guests.invocation import CallServices, GuestFault
from edge_runtime.guests.wasi import Wasi
from edge_runtime.ipc.log_lines import PREFIXES
from edge_runtime.wasmedge import HostFunction, HostModule

VARS_LIMIT: Final = 1024 * 1024
"""Bytes of a call's vars, with their names: Extism's default."""


class ExtismHost:
    """The host functions, with the state of the running call."""

    def __init__(self, wasi: Wasi) -> None:
        self.blocks = Blocks()
        self._wasi = wasi
        self.begin(NOTHING, {})
        functions: dict[str, HostFunction] = {f"log_{level}": self._log(level) for level in extism.LOGS}
        env = {name: (signature, functions.get(name) or getattr(self, name)) for name, signature in extism.HOST.items()}
        users = {name: (signature, getattr(self, name)) for name, signature in extism.USERS.items()}
        self.imports = (HostModule(extism.ENV, env), HostModule(extism.USER, users))

    def begin(self, services: CallServices, config: Mapping[bytes, bytes]) -> None:
        """Set the state for a new call."""
        self._services, self._config = services, config
        self._vars: dict[bytes, bytes] = {}
        self._status, self._headers = 0, b"{}"

    # Functions of extism:host/env

    def config_get(self, key: int) -> int:
        return self._value(self._config, key)

    def var_get(self, key: int) -> int:
        return self._value(self._vars, key)

    def _value(self, values: Mapping[bytes, bytes], key: int) -> int:
        answer = self.blocks.new(values.get(self._key(key), b""))
        self.blocks.free(key)
        return answer

    def var_set(self, key: int, value: int) -> None:
        name, data = self._key(key), self.blocks.read(value)
        self.blocks.free(key)
        self.blocks.free(value)
        self._vars.pop(name, None)
        if not value:
            return
        used = sum([len(other) + len(kept) for other, kept in self._vars.items()])
        if used + len(name) + len(data) > VARS_LIMIT:
            raise GuestFault("guest_vars_full", f"Its vars would have more than {VARS_LIMIT} bytes.")
        self._vars[name] = data

    def _key(self, key: int) -> bytes:
        name = self.blocks.read(key)
        try:
            name.decode()
        except UnicodeDecodeError:
            raise GuestFault("guest_call_invalid", f"It asked for the key {name!r}, which isn't UTF-8.") from None
        return name

    def get_log_level(self) -> int:
        """Return the lowest level: everything is logged, up to the log's limit."""
        return 0

    def _log(self, level: str) -> Callable[[int], None]:
        prefix = PREFIXES[level]

        def log(message: int) -> None:
            self._wasi.log(prefix, self.blocks.read(message))
            self.blocks.free(message)

        return log

    def http_request(self, request: int, body: int) -> int:
        self._status, self._headers = 0, b"{}"
        request_json = _request(self.blocks.read(request), self.blocks.read(body))
        answer = orjson.loads(self._fetch(request_json))
        if "error" in answer:
            error = answer["error"]
            raise GuestFault("guest_http_failed", f"Its http_request failed ({error['code']}): {error['message']}")
        self._status = answer["status"]
        headers: dict[str, str] = {}
        for name, value in answer["headers"]:
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        self._headers = orjson.dumps(headers, option=orjson.OPT_SORT_KEYS)
        content = answer["body"]
        block = self.blocks.new(content.encode() if isinstance(content, str) else base64.b64decode(content["$blob"]))
        self.blocks.free(request)
        self.blocks.free(body)
        return block

    def http_status_code(self) -> int:
        return self._status

    def http_headers(self) -> int:
        return self.blocks.new(self._headers)

    # Functions of extism:host/user

    def sql(self, request: int) -> int:
        sql, request_json = self._services.sql, self.blocks.read(request)
        return self.blocks.new(
            not_granted("SQL", "`sql` to read or write") if sql is None else sql.execute(request_json)
        )

    def http(self, request: int) -> int:
        return self.blocks.new(self._fetch(self.blocks.read(request)))

    def _fetch(self, request: bytes) -> bytes:
        http = self._services.http
        return not_granted("HTTP", "`http`, with the hosts") if http is None else http.fetch(request)


def _request(extism_request: bytes, body: bytes) -> bytes:
    """Return a request of Extism's as the JSON of `skerry.http`.

    Raises: GuestFault, when it isn't JSON of Extism's form.
    """
    try:
        decoded = orjson.loads(extism_request)
        # Early PDKs write `header`.
        headers = decoded.get("headers") or decoded.get("header") or {}
        request = {
            "method": (decoded.get("method") or "GET").upper(),
            "url": decoded["url"],
            "headers": [[name, value] for name, value in headers.items()],
        }
    except (orjson.JSONDecodeError, AttributeError, KeyError) as error:
        text = f'It called http_request without the JSON {{"url", "method", "headers"}} ({error!r}).'
        raise GuestFault("guest_call_invalid", text) from None
    if body:
        request["body"] = {"$blob": base64.b64encode(body).decode()}
    return orjson.dumps(request)
