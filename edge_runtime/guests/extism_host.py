"""What the host offers an Extism plug-in: host functions (config, vars, log, HTTP and SQL), and the kernel's memory.

All data passes through blocks of the kernel's memory. The host frees the blocks that a plug-in hands to Extism's
functions, and only after it has allocated the block of the answer: some PDKs free their own block a second time, and
would otherwise free the answer's block if the memory is full and the block is reused.
"""

import base64
import struct
from collections.abc import Callable, Mapping
from typing import Final

import orjson

from edge_runtime.guests.abi import extism
from edge_runtime.guests.host_functions import NOTHING, not_granted
from edge_runtime.guests.invocation import CallServices, GuestFault
from edge_runtime.guests.wasi import Wasi
from edge_runtime.ipc.log_lines import PREFIXES
from edge_runtime.wasmedge import HostFunction, HostModule, Memory

VARS_LIMIT: Final = 1024 * 1024
"""Bytes of a call's vars, including their names: Extism's default."""

_USED, _INPUT, _OUTPUT, _ERROR, _LISTS, _BLOCKS = 16, 24, 40, 56, 64, 512
_MARK = 0x5EE1_C0DE_0B10_C500
_HEAD = struct.Struct("<QII")
_ONE = struct.Struct("<Q")
_TWO = struct.Struct("<QQ")
_MOST = 0xF000_0000
_FRESH = bytes(_LISTS - _USED)
"""What is there before the plug-in has allocated or set anything."""
_TRIED = 64
"""How many blocks of a list are checked for one that is large enough."""


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
    """Return an Extism request as the JSON of `skerry.http`.

    Raises: GuestFault, when it isn't JSON in Extism's form.
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


class Blocks:
    """The blocks of bytes in the kernel memory of the running plug-in, which both sides know by handles.

    The plug-in can write anything into this memory, so every address is checked. The layout and the rules of the free
    lists are those of kernel.wat.

    Raises: GuestFault, in every method, when the plug-in has corrupted the memory or it is full.
    """

    def __init__(self) -> None:
        self.memory = Memory()

    def new(self, data: bytes) -> int:
        """Allocate a block for `data`, and return its handle; 0 if there is no data."""
        if not data:
            return 0
        room = len(data) + 15 & -16
        used = self._word(_USED)
        block = _BLOCKS + used
        free = 0
        if not self._has(end := block + 16 + room + 8):
            free = self._free_block(room)
            if not free:
                self._grow(end)
        if free:
            block, room = free, self._head(free)[2]
        else:
            self._put(_USED, _ONE.pack(used + 16 + room))
        handle = block + 16
        self._put(block, _HEAD.pack(handle ^ _MARK, len(data), room))
        self._put(handle, data)
        return handle

    def _free_block(self, room: int) -> int:
        """Remove a block of at least `room` bytes from the free lists, and return its address; 0 for none."""
        before = _LISTS + 8 * (room.bit_length() - 1)
        following = before + 8
        for _ in range(_TRIED):
            block = self._word(before)
            if not block:
                break
            if self._head(block)[2] >= room:
                return self._taken(before, block)
            before = block
        block = self._word(following)
        return self._taken(following, block) if block else 0

    def _taken(self, before: int, block: int) -> int:
        """Remove a block from its list, in which it follows the block at `before`."""
        self._put(before, _ONE.pack(self._word(block)))
        return block

    def read(self, handle: int) -> bytes:
        """Return the bytes of a block; nothing for the handle 0."""
        if not handle:
            return b""
        length = self._length(handle)
        if length is None:
            raise GuestFault("guest_call_invalid", f"It gave Extism the handle {handle}, which no block has.")
        return self._get(handle, length)

    def free(self, handle: int) -> None:
        """Free a block that `read` has found, unless it has been freed since. Freeing the input leaves none."""
        if not handle:
            return
        block = handle - 16
        mark, _, room = self._head(block)
        if mark != handle ^ _MARK:
            return
        list_ = _LISTS + 8 * ((room | 1).bit_length() - 1)
        self._put(block, _ONE.pack(self._word(list_)))
        self._put(list_, _ONE.pack(block))
        if handle == self._word(_INPUT):
            self._put(_INPUT, _TWO.pack(handle, 0))

    def set_input(self, data: bytes) -> None:
        """Set the plug-in's input. What it allocated and set before, during initialization, is gone."""
        if self._get(_USED, _LISTS - _USED) != _FRESH:
            used = self._word(_USED)
            if not self._has(_BLOCKS + used):
                raise GuestFault("guest_call_invalid", "It has spoilt the memory that it shares with Extism.")
            self._put(_USED, bytes(_BLOCKS - _USED + used))
        self._put(_INPUT, _TWO.pack(self.new(data), len(data)))

    def error(self) -> bytes | None:
        """Return the error that the plug-in set; None if it set none or has freed it."""
        handle = self._word(_ERROR)
        length = self._length(handle)
        return None if length is None else self._get(handle, length)

    def output_length(self) -> int:
        """Return the length in bytes of the output that the plug-in set."""
        return _TWO.unpack(self._get(_OUTPUT, 16))[1]  # type: ignore[no-any-return]

    def output(self) -> bytes:
        """Return the output that the plug-in set."""
        start, length = _TWO.unpack(self._get(_OUTPUT, 16))
        return self._get(start, length) if length else b""

    def _length(self, handle: int) -> int | None:
        """Return the length of a block's data in bytes; None for a handle without a block."""
        if handle < _BLOCKS + 16 or not self._has(handle):
            return None
        mark, length, _ = self._head(handle - 16)
        return length if mark == handle ^ _MARK else None

    def _head(self, block: int) -> tuple[int, int, int]:
        """Return a block's mark, the length of its data, and its capacity in bytes."""
        return _HEAD.unpack(self._get(block, 16))

    def _word(self, at: int) -> int:
        return _ONE.unpack(self._get(at, 8))[0]  # type: ignore[no-any-return]

    def _get(self, start: int, length: int) -> bytes:
        try:
            return self.memory.read(start, length)
        except IndexError as error:
            raise _outside(error) from None

    def _put(self, start: int, data: bytes) -> None:
        try:
            self.memory.write(start, data)
        except IndexError as error:
            raise _outside(error) from None

    def _has(self, end: int) -> bool:
        """Return whether all bytes below the address `end` exist already."""
        try:
            self.memory.need(end)
        except IndexError:
            return False
        return True

    def _grow(self, end: int) -> None:
        if end > _MOST or not self.memory.grow(end):
            raise GuestFault(
                "guest_memory_full",
                f"What passes between it and the host needs {end} bytes, and the memory for that has as many pages as "
                "its manifest's memory_pages allows.",
            )


def _outside(error: IndexError) -> GuestFault:
    return GuestFault("guest_call_invalid", f"It gave Extism an address outside the kernel's memory: {error}.")
