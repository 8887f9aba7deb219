"""Load the C library, if it was built from the sources beside it.

`built/` has the library and the outer module: the compiled WebAssembly module in which the loop runs, so that WasmEdge
doesn't set signal handlers for each guest. `built/stamp.json` has the sha256 of both, and of the sources.
"""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from edge_runtime.native import worker_loop_h

FOLDER: Final = Path(__file__).parent
BUILT: Final = FOLDER / "built"
LIBRARY: Final = "worker_loop.so"
OUTER: Final = "outer.so"
STAMP: Final = "stamp.json"

ffi: Any = worker_loop_h.ffi


class Unusable(Exception):
    """The C library isn't used; the message says why."""

    def __init__(self, why: str, *, stale: bool = True) -> None:
        """Say `why`; `stale` means that something is built but doesn't match."""
        super().__init__(why)
        self.stale = stale


def sources(folder: Path = FOLDER) -> str:
    """Return the sha256 of the library's sources, in hex."""
    found = hashlib.sha256()
    for path in sorted((*folder.glob("*.c"), *folder.glob("*.h"))):
        text = path.read_bytes()
        found.update(f"{path.name} {len(text)}\n".encode() + text)
    return found.hexdigest()


def stamp_of(built: Path, folder: Path = FOLDER) -> dict[str, str]:
    """Return the stamp for files that were built from the sources in `folder`. Raises: OSError."""
    made = {name: hashlib.sha256((built / name).read_bytes()).hexdigest() for name in (LIBRARY, OUTER)}
    return {**made, "sources": sources(folder)}


@functools.cache
def unfit() -> Unusable | None:
    """Return why the built files can't be used, without loading them; None if they can."""
    if os.environ.get("SKERRY_EDGE_PURE"):
        return Unusable("SKERRY_EDGE_PURE is set", stale=False)
    try:
        stamp = json.loads((BUILT / STAMP).read_bytes())
        found = stamp_of(BUILT)
    except FileNotFoundError:
        return Unusable("it isn't built; `just compile` builds it", stale=BUILT.exists())
    except (OSError, ValueError) as error:
        return Unusable(f"what is built can't be read, {error}; `just compile` builds it anew")
    if not isinstance(stamp, dict) or stamp.get("sources") != found["sources"]:
        return Unusable("it is built from other sources than are here; `just compile` builds it anew")
    for name in (LIBRARY, OUTER):
        if stamp.get(name) != found[name]:
            return Unusable(f"its file {name} isn't the one that was built; `just compile` builds it anew")
    return None


@functools.cache
def opened() -> Any:
    """Return the library.

    Raises: Unusable, when it is missing, differs from what was built, or was built from other sources.
    """
    if (why := unfit()) is not None:
        raise why
    try:
        return ffi.dlopen(str(BUILT / LIBRARY))
    except OSError as error:
        raise Unusable(f"it can't be loaded ({error}); `just compile` builds it anew") from None


def address(pointer: Any) -> int:
    """Return the number of a C pointer."""
    return int(ffi.cast("uintptr_t", pointer))


def symbol(name: str) -> Any:
    """Return a pointer to a function of the library. Raises: Unusable."""
    return ffi.addressof(opened(), name)


def host_function(name: str, callback: int) -> tuple[int, int]:
    """Return the addresses of the C function for a guest's import and of its argument.

    The function calls `callback`, the address of the Python function, whenever the loop runs no guest.
    """
    data = ffi.new("void **")
    function = opened().skerry_host_function(name.encode(), ffi.cast("void *", callback), data)
    if not function:
        raise MemoryError("there is no memory for a host function")
    return address(function), address(data[0])


def unusable() -> str:
    """Return why the library isn't used; empty if it is."""
    try:
        opened()
    except Unusable as why:
        return str(why)
    return ""
