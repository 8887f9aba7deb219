"""What can go wrong on the other side of the C API: one class for each thing that callers treat differently."""


class LibraryMissing(ImportError):
    """libwasmedge.so.0 is not installed, or is of another version than the one this binding was made for."""


class WasmEdgeError(Exception):
    """WasmEdge refused: `code` is its error code (enum.inc of 0.14.1), the message its own words."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class LoadError(WasmEdgeError):
    """The bytes are no module that can be loaded (codes 0x01xx), or the module isn't valid (0x02xx)."""


class LinkError(WasmEdgeError):
    """The module can't be instantiated with these imports (codes 0x03xx)."""


class Trap(WasmEdgeError):
    """The guest trapped: divide by zero, unreachable, access out of bounds and the like (codes 0x04xx)."""


class CompileError(WasmEdgeError):
    """The AOT compiler refused the module or could not write its file."""


class Unsafe(RuntimeError):
    """The process is not one in which a guest may run: its memory could not be kept inside its sandbox."""


class HandleClosed(RuntimeError):
    """A handle was used after it had been closed."""


def failure(code: int, message: str) -> WasmEdgeError:
    """The error for a result's code: its high byte names the phase."""
    phase = code >> 8 & 0xFF
    if phase in (1, 2):
        return LoadError(code, message)
    if phase == 3:
        return LinkError(code, message)
    return Trap(code, message)
