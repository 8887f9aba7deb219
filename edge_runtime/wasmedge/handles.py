"""Ownership of the objects that the C API creates: each is deleted exactly once, and using it afterwards is an
error."""

from types import TracebackType
from typing import ClassVar, Self

from edge_runtime.wasmedge.declarations import CData, ffi, library
from edge_runtime.wasmedge.errors import HandleClosed, failure


class Handle:
    """An object of the C API. `close` deletes it; the garbage collector does where nobody called `close`.

    `_delete` is the name of the C function that deletes the object.
    """

    _delete: ClassVar[str]
    _library = library
    """Kept here so that an object that is closed while the interpreter ends can still call the library."""
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
    """Raise the error that a result stands for. 0 is success, and 1 an end that a host function asked for.

    Raises: WasmEdgeError, or one of its subclasses.
    """
    if result > 1:
        raise failure(result & 0xFFFFFF, message(result))


def message(result: int) -> str:
    """Return WasmEdge's own text for a result."""
    return str(ffi.string(library.WasmEdge_ResultGetMessage(result)).decode())
