"""A worker's functions: each is loaded when it is first called, and the ones that were called longest ago are unloaded
when memory is short."""

import hashlib
import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from edge_runtime.aot_cache import Damaged, memory_estimate
from edge_runtime.guests import guest
from edge_runtime.ipc import frames
from edge_runtime.sql.call_sql import SqlLimits
from edge_runtime.wasmedge import WasmEdgeError
from edge_runtime.wasmedge.declarations import libc

log = logging.getLogger("skerry.loading")

MOST: Final = 1000
"""Functions that a worker has loaded at once: each takes some of its mappings, which the kernel counts too."""

Key = tuple[str, str, str, bytes, str]


class Entry:
    """A function of a release as a worker has it, loaded or not."""

    __slots__ = ("function", "key", "lacking", "local", "secrets", "sql", "used")

    def __init__(
        self, key: Key, local: frames.LocalFunction, secrets: dict[str, str], lacking: frames.Failure | None
    ) -> None:
        self.key = key
        """What it depends on."""
        self.local = local
        self.secrets = secrets
        self.lacking = lacking
        """Why it can't be called, whatever its code is."""
        self.sql = SqlLimits(answer_bytes=local.manifest.sql_bytes, rows=local.manifest.sql_rows)
        self.function: guest.Function | None = None
        self.used = 0
        """When it was last called, in calls of the worker."""


class Functions:
    """All functions that a worker may be asked for."""

    def __init__(self, room: int) -> None:
        """`room`: the bytes that loaded functions may take, with all else that this process has allocated."""
        self._room = room
        self._entries: dict[Key, Entry] = {}
        self._loaded: dict[Key, Entry] = {}
        self.damaged = ""
        """The artifact whose compiled code the last `load` found damaged; empty where it was whole."""

    def entry(
        self, local: frames.LocalFunction, secrets: dict[str, str], lacking: frames.Failure | None = None
    ) -> Entry:
        """The function's entry, the same one for all releases that have the same."""
        hashed = hashlib.sha256(frames.encode_json(secrets)).digest()
        why = "" if lacking is None else lacking.message
        key = (local.name, local.code[1], local.manifest_digest, hashed, why)
        found = self._entries.get(key)
        if found is None:
            found = self._entries[key] = Entry(key, local, secrets, lacking)
        return found

    def load(self, entry: Entry) -> guest.Function | frames.Failure:
        """Load a function that isn't, or say why it can't be called. Where its compiled code is damaged, it runs on
        the interpreter."""
        self.damaged = ""
        local = entry.local
        if entry.lacking is not None:
            return entry.lacking
        if not local.code[0]:
            text = f"The function {local.name} can't be run on this node: its artifact is lost or damaged."
            return frames.Failure("function_uncompiled", text)
        self._make_room(memory_estimate(local.code[0], compiled=bool(local.aot)))
        try:
            try:
                made = guest.Function.load(local, entry.secrets)
            except (Damaged, WasmEdgeError, OSError) as error:
                if not local.aot or not local.wasm:
                    raise
                log.error("the compiled code of %s can't be used, so it is interpreted: %s", local.name, error)
                self.damaged = local.sha256
                interpreted = msgspec.structs.replace(local, aot="", aot_digest="")
                self._make_room(memory_estimate(interpreted.wasm, compiled=False))
                made = guest.Function.load(interpreted, entry.secrets)
        except (Damaged, WasmEdgeError, OSError) as error:
            text = f"The function {local.name}, version {local.version}, can't be loaded: {error}."
            return frames.Failure("function_unloadable", text)
        entry.function = made
        self._loaded[entry.key] = entry
        self._make_room(0, but=entry)
        return made

    def loaded(self, name: str) -> bool:
        """Whether a function of this name is loaded, of whichever version."""
        return any(key[0] == name for key in self._loaded)

    def keep(self, entries: Iterable[Entry]) -> None:
        """Unload and forget all others."""
        kept = {entry.key for entry in entries}
        for key in self._entries.keys() - kept:
            self._unload(self._entries.pop(key))

    def _make_room(self, need: int, but: Entry | None = None) -> None:
        """Unload functions until `need` bytes are left of the room, or no other is loaded."""
        unloaded = False
        while len(self._loaded) > (but is not None) and (len(self._loaded) > MOST or allocated() + need > self._room):
            self._unload(min((each for each in self._loaded.values() if each is not but), key=lambda each: each.used))
            unloaded = True
        if unloaded:
            libc.malloc_trim(0)

    def _unload(self, entry: Entry) -> None:
        if entry.function is not None:
            del self._loaded[entry.key]
            entry.function.close()
            entry.function = None


def allocated() -> int:
    """Bytes that this process has allocated by malloc: nearly all that a loaded function takes."""
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)
