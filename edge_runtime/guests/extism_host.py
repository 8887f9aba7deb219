"""What the host gives to Extism plug-ins: config, vars, log, HTTP and SQL.

All data goes through blocks of the kernel's memory. Those that a plug-in gives to Extism's functions are the host's
to free: after the answer has its own, since PDKs that free theirs once more would free that one.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from edge_runtime.guests.abi import extism
from edge_runtime.guests.extism_memory import Blocks
from edge_runtime.guests.host_functions import NOTHING, not_granted
from edge_runtime.guests.invocation import GuestFault, Services
from edge_runtime.guests.wasi import Wasi
from edge_runtime.wasmedge import HostModule

VARS_LIMIT: Final = 1024 * 1024
"""Bytes of a call's vars, their names included: Extism's default."""


class ExtismHost:
    """The functions, and the state of the one call that runs."""

    def __init__(self, wasi: Wasi) -> None:
        self.blocks = Blocks()
        self._wasi = wasi
        self.begin(NOTHING, {})
        functions: dict[str, Callable[..., Any]] = {f"log_{level}": self._log(level) for level in extism.LOGS}
        env = {name: (signature, functions.get(name) or getattr(self, name)) for name, signature in extism.HOST.items()}
        users = {name: (signature, getattr(self, name)) for name, signature in extism.USERS.items()}
        self.imports = (HostModule(extism.ENV, env), HostModule(extism.USER, users))

    def begin(self, services: Services, config: Mapping[bytes, bytes]) -> None:
        """Start a call."""
        self._services, self._config = services, config
        self._vars: dict[bytes, bytes] = {}
        self._status, self._headers = 0, b"{}"

    # extism:host/env

    def config_get(self, key: int) -> int:
        return self._found(self._config, key)

    def var_get(self, key: int) -> int:
        return self._found(self._vars, key)

    def _found(self, place: Mapping[bytes, bytes], key: int) -> int:
        answer = self.blocks.new(place.get(self.blocks.read(key), b""))
        self.blocks.free(key)
        return answer

    def var_set(self, key: int, value: int) -> None:
        name, data = self.blocks.read(key), self.blocks.read(value)
        self.blocks.free(key)
        self.blocks.free(value)
        self._vars.pop(name, None)
        if not value:
            return
        used = sum([len(other) + len(kept) for other, kept in self._vars.items()])
        if used + len(name) + len(data) > VARS_LIMIT:
            raise GuestFault("guest_vars_full", f"Its vars would have more than {VARS_LIMIT} bytes.")
        self._vars[name] = data

    def get_log_level(self) -> int:
        """The lowest: all is logged, up to the log's bound."""
        return 0

    def _log(self, level: str) -> Callable[[int], None]:
        def log(message: int) -> None:
            self._wasi.log(b"%s: %s\n" % (level.encode(), self.blocks.read(message)))
            self.blocks.free(message)

        return log

    def http_request(self, request: int, body: int) -> int:
        self._status, self._headers = 0, b"{}"
        asked = _request(self.blocks.read(request), self.blocks.read(body))
        answer = orjson.loads(self._fetch(asked))
        if "error" in answer:
            error = answer["error"]
            raise GuestFault("guest_http_failed", f"Its http_request failed ({error['code']}): {error['message']}")
        self._status = answer["status"]
        headers: dict[str, str] = {}
        for name, value in answer["headers"]:
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        self._headers = orjson.dumps(headers)
        content = answer["body"]
        answered = self.blocks.new(content.encode() if isinstance(content, str) else base64.b64decode(content["$blob"]))
        self.blocks.free(request)
        self.blocks.free(body)
        return answered

    def http_status_code(self) -> int:
        return self._status

    def http_headers(self) -> int:
        return self.blocks.new(self._headers)

    # extism:host/user

    def sql(self, request: int) -> int:
        sql, asked = self._services.sql, self.blocks.read(request)
        return self.blocks.new(not_granted("SQL", "`sql` to read or write") if sql is None else sql.execute(asked))

    def http(self, request: int) -> int:
        return self.blocks.new(self._fetch(self.blocks.read(request)))

    def _fetch(self, request: bytes) -> bytes:
        http = self._services.http
        return not_granted("HTTP", "`http`, with the hosts") if http is None else http.fetch(request)


def _request(given: bytes, body: bytes) -> bytes:
    """A request of Extism's as one of `skerry.http`."""
    try:
        asked = orjson.loads(given)
        # Early PDKs call them `header`, as Extism still lets them.
        headers = asked.get("headers") or asked.get("header") or {}
        request = {
            "method": (asked.get("method") or "GET").upper(),
            "url": asked["url"],
            "headers": [[name, value] for name, value in headers.items()],
        }
    except (orjson.JSONDecodeError, AttributeError, KeyError) as error:
        text = f'It called http_request without the JSON {{"url", "method", "headers"}} ({error!r}).'
        raise GuestFault("guest_call_invalid", text) from None
    if body:
        request["body"] = {"$blob": base64.b64encode(body).decode()}
    return orjson.dumps(request)
