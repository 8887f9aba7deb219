"""WasmEdge's library and libc, opened by the declarations in wasmedge.h (cffi's ABI mode, which needs no compiler).

A `WasmEdge_Value` has 32 bytes: 16 of value, 8 of type, 8 of padding. Host functions see values as words of 32 bits,
`VALUE_WORDS` apart, so that an i32 is read by one index and no masking.
"""

from typing import Any

from edge_runtime.aot_cache import WASMEDGE
from edge_runtime.wasmedge import wasmedge_h
from edge_runtime.wasmedge.errors import LibraryMissing

VERSION = WASMEDGE
LIBRARY = "libwasmedge.so.0"
VALUE_WORDS = 8

CData = Any
"""A value of cffi's: cffi has no static types for C data."""

ffi: Any = wasmedge_h.ffi
libc: Any = ffi.dlopen(None)


def _open() -> Any:
    install = f"Install WasmEdge {VERSION}: on Debian 13, `sudo apt-get install -y libwasmedge0`."
    try:
        opened = ffi.dlopen(LIBRARY)
    except OSError as error:
        raise LibraryMissing(f"{LIBRARY} can't be loaded ({error}). {install}") from None
    try:
        version = ffi.string(opened.WasmEdge_VersionGet()).decode()
    except ffi.error:
        raise LibraryMissing(f"{LIBRARY} is not WasmEdge's library. {install}") from None
    if version != VERSION:
        # The struct layouts and the hazards that this binding guards against are those of one version.
        raise LibraryMissing(f"{LIBRARY} is WasmEdge {version}; this program works with {VERSION} alone. {install}")
    # WasmEdge logs to stdout by default, which a worker or a command uses for its own output.
    opened.WasmEdge_LogOff()
    return opened


library: Any = _open()
