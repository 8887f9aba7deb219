"""WasmEdge's C API for Python: the library and libc, and ownership of the objects that the library creates.

Both are opened with the declarations in wasmedge.h (cffi's ABI mode, which needs no compiler). An object is deleted
exactly once, and using it afterwards is an error.

A `WasmEdge_Value` has 32 bytes: 16 of value, 8 of type, 8 of padding. Host functions see values as words of 32 bits,
`VALUE_WORDS` apart, so that an i32 is read with one index and no masking.
"""

from types import TracebackType
from typing import Any, ClassVar, Self

from edge_runtime.aot_cache import WASMEDGE
from edge_runtime.wasmedge import wasmedge_h
from edge_runtime.wasmedge.errors import HandleClosed, LibraryMissing, failure

VERSION = WASMEDGE
LIBRARY = "libwasmedge.so.0"
VALUE_WORDS = 8

CData = Any
"""A cffi value: cffi has no static types for C data."""

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


class Handle:
    """An object of the C API. `close` deletes it; the garbage collector does if nobody called `close`.

    `_delete` is the name of the C function that deletes the object.
    """

    _delete: ClassVar[str]
    _library = library
    """Kept here so that an object that is closed while the interpreter exits can still call the library."""
    _owned: CData = None

    def _own(self, created: CData) -> None:
        if not created:
            raise MemoryError(f"WasmEdge could not create a {type(self).__name__}")
        self._owned = created

    @property
    def pointer(self) -> CData:
        """The C pointer.

        Raises: HandleClosed, after `close`.
        """
        if self._owned is None:
            raise HandleClosed(f"this {type(self).__name__} has been closed")
        return self._owned

    @property
    def closed(self) -> bool:
        return self._owned is None

    def close(self) -> None:
        """Delete the object. Closing it again does nothing."""
        owned, self._owned = self._owned, None
        if owned is not None:
            getattr(self._library, self._delete)(owned)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Name:
    """A WasmEdge_String together with the bytes that it points to, for a name that is used many times."""

    __slots__ = ("_bytes", "_string", "value")

    def __init__(self, text: str) -> None:
        encoded = text.encode()
        self._bytes = ffi.new("char[]", encoded)
        self._string = ffi.new("WasmEdge_String *", (len(encoded), self._bytes))
        self.value: CData = self._string[0]


def address(pointer: CData) -> int:
    """Return the number of a C pointer."""
    return int(ffi.cast("uintptr_t", pointer))


def check(result: int) -> None:
    """Raise the error for a result. 0 is success, and 1 means that a host function asked to stop.

    Raises: WasmEdgeError, or one of its subclasses.
    """
    if result > 1:
        raise failure(result & 0xFFFFFF, message(result))


def message(result: int) -> str:
    """Return WasmEdge's own text for a result."""
    return str(ffi.string(library.WasmEdge_ResultGetMessage(result)).decode())
