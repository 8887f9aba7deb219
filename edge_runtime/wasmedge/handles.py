"""Ownership of what the C API creates: each handle is closed exactly once, and using it afterwards is an error."""

from types import TracebackType
from typing import ClassVar, Self

from edge_runtime.wasmedge.declarations import CData, ffi, library
from edge_runtime.wasmedge.errors import HandleClosed, failure


class Handle:
    """One object of the C API, deleted by `close()` (or by the garbage collector, where nobody called it).

    `_delete` names the function of the C API that deletes it.
    """

    _delete: ClassVar[str]
    _library = library
    """Held here so that handles that are closed as the interpreter ends still have it."""
    _owned: CData = None

    def _own(self, created: CData) -> None:
        if not created:
            raise MemoryError(f"WasmEdge could not create a {type(self).__name__}")
        self._owned = created

    @property
    def pointer(self) -> CData:
        """The C pointer. Error: HandleClosed."""
        if self._owned is None:
            raise HandleClosed(f"this {type(self).__name__} has been closed")
        return self._owned

    @property
    def closed(self) -> bool:
        return self._owned is None

    def close(self) -> None:
        """Delete the object. Closing again does nothing."""
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
    """A WasmEdge_String and the bytes that it points at, for names that are used again and again."""

    __slots__ = ("_bytes", "_string", "value")

    def __init__(self, text: str) -> None:
        encoded = text.encode()
        self._bytes = ffi.new("char[]", encoded)
        self._string = ffi.new("WasmEdge_String *", (len(encoded), self._bytes))
        self.value: CData = self._string[0]


def check(result: int) -> None:
    """Raise the error that a result stands for. 0 is success, and 1 an end that the host asked for."""
    if result > 1:
        raise failure(result & 0xFFFFFF, message(result))


def message(result: int) -> str:
    """WasmEdge's own words for a result."""
    return str(ffi.string(library.WasmEdge_ResultGetMessage(result)).decode())
