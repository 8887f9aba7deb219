"""The functions of a worker: each is loaded at its first call; the least recently used are unloaded for memory."""

import hashlib
import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from edge_runtime import process_memory
from edge_runtime.aot_cache import Damaged, memory_estimate
from edge_runtime.guests import function_code, guest
from edge_runtime.ipc import frames
from edge_runtime.ipc.call_times import Slowest
from edge_runtime.sql.call_sql import SqlLimits
from edge_runtime.wasmedge import WasmEdgeError
from edge_runtime.wasmedge.c_api import libc

log = logging.getLogger("skerry.loading")

MOST: Final = 1000
"""The most functions that a worker has loaded at once: each takes memory mappings, which the kernel also limits."""

Key = tuple[str, str, str, int, str, bytes, str]


class Entry:
    """A function of a release in a worker, loaded or not."""

    __slots__ = ("function", "key", "lacking", "local", "secrets", "slowest", "sql", "used")

    def __init__(
        self, key: Key, local: frames.LocalFunction, secrets: dict[str, str], lacking: frames.ChildFailure | None
    ) -> None:
        self.key = key
        """Everything that the loaded function depends on."""
        self.local = local
        self.secrets = secrets
        self.lacking = lacking
        """Why the function can't be called, whatever its code is; None if it can."""
        self.sql = SqlLimits(answer_bytes=local.manifest.sql_bytes, rows=local.manifest.sql_rows)
        self.function: guest.LoadedFunction | None = None
        self.slowest = Slowest()
        """Decides which of this worker's calls of the function are slow."""
        self.used = 0
        """The number of the worker's call that last called this function."""


class Functions:
    """All functions that a worker may be asked for."""

    def __init__(self, room: int) -> None:
        """Limit loaded functions, with everything else that this process has allocated, to `room` bytes."""
        self._room = room
        self.calls = 0
        """The number of calls that the worker has run."""
        self._entries: dict[Key, Entry] = {}
        self._loaded: dict[Key, Entry] = {}
        self.damaged = ""
        """sha256 of the artifact whose compiled code the last `load` found damaged; empty if it was undamaged."""

    def entry(
        self, local: frames.LocalFunction, secrets: dict[str, str], lacking: frames.ChildFailure | None = None
    ) -> Entry:
        """Return the entry of a function; releases with the same function share it."""
        hashed = hashlib.sha256(frames.encode_json(secrets)).digest()
        why = "" if lacking is None else lacking.message
        key = (local.name, local.code[1], local.image_digest, local.mended, local.manifest_digest, hashed, why)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key, local, secrets, lacking)
        return entry

    def load(self, entry: Entry) -> guest.LoadedFunction | frames.ChildFailure:
        """Load a function, or return why it can't be called.

        If its compiled code is damaged, it runs on the interpreter, unless it is a snapshot: that would take many
        seconds to its first answer.
        """
        self.damaged = ""
        local = entry.local
        if entry.lacking is not None:
            return entry.lacking
        if not local.code[0]:
            text = f"The function {local.name} can't be run on this node: its artifact is lost or damaged."
            if local.image:
                text = f"The function {local.name} can't be called yet: this node still compiles its engine."
            return frames.ChildFailure("function_uncompiled", text)
        if not local.image or not function_code.has_engine(*local.code):
            self._make_room(memory_estimate(local.code[0], compiled=bool(local.aot)))
        try:
            try:
                made = guest.LoadedFunction.load(local, entry.secrets)
            except (Damaged, WasmEdgeError, OSError) as error:
                if local.image:
                    log.error("the compiled engine or the image of %s can't be used: %s", local.name, error)
                    self.damaged = local.sha256
                    raise
                if not local.aot or not local.wasm:
                    raise
                log.error("the compiled code of %s can't be used, so it is interpreted: %s", local.name, error)
                self.damaged = local.sha256
                interpreted = msgspec.structs.replace(local, aot="", aot_digest="")
                self._make_room(memory_estimate(interpreted.wasm, compiled=False))
                made = guest.LoadedFunction.load(interpreted, entry.secrets)
        except (Damaged, WasmEdgeError, OSError) as error:
            return unloadable(local, error)
        entry.function = made
        self._loaded[entry.key] = entry
        self._make_room(0, but=entry)
        return made

    def loaded(self, name: str) -> bool:
        """Return whether any version of a function of this name is loaded."""
        return any(key[0] == name for key in self._loaded)

    def keep(self, entries: Iterable[Entry]) -> None:
        """Keep these entries; unload and forget all others."""
        kept = {entry.key for entry in entries}
        for key in self._entries.keys() - kept:
            self._unload(self._entries.pop(key))

    def _make_room(self, need: int, but: Entry | None = None) -> None:
        """Unload functions until `need` bytes of the room are free, or only `but` is loaded."""
        unloaded = False
        while len(self._loaded) > (but is not None) and (len(self._loaded) > MOST or allocated() + need > self._room):
            self._unload(min((each for each in self._loaded.values() if each is not but), key=lambda each: each.used))
            unloaded = True
        if unloaded:
            process_memory.trim_heap()

    def _unload(self, entry: Entry) -> None:
        if entry.function is not None:
            del self._loaded[entry.key]
            entry.function.close()
            entry.function = None


def unloadable(local: frames.LocalFunction, error: Exception) -> frames.ChildFailure:
    """Return the failure to report for a function that couldn't be loaded."""
    text = f"The function {local.name}, version {local.version}, can't be loaded: {error}."
    return frames.ChildFailure("function_unloadable", text)


def allocated() -> int:
    """Return the bytes that this process has allocated by malloc, which include nearly all of a loaded function."""
    counts = libc.mallinfo2()
    return int(counts.uordblks + counts.hblkhd)
