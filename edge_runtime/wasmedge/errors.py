"""The errors of the binding: one class for each case that callers treat differently."""


class LibraryMissing(ImportError):
    """libwasmedge.so.0 is not installed, or isn't the version that this binding was made for."""


class WasmEdgeError(Exception):
    """WasmEdge refused something. `code` is its error code (enum.inc of 0.14.1), the message is its own text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class LoadError(WasmEdgeError):
    """WasmEdge can't load the bytes as a module (codes 0x01xx), or the module is invalid (codes 0x02xx)."""


class LinkError(WasmEdgeError):
    """The module can't be instantiated with the given imports (codes 0x03xx)."""


class Trap(WasmEdgeError):
    """The guest trapped: division by zero, `unreachable`, an out-of-bounds access and the like (codes 0x04xx)."""


class CompileError(WasmEdgeError):
    """The AOT compiler refused the module, or could not write its file."""


class Unsafe(RuntimeError):
    """No guest may run in this process now: its memory could not be kept inside its sandbox."""


class HandleClosed(RuntimeError):
    """A handle was used after `close`."""


def failure(code: int, message: str) -> WasmEdgeError:
    """Return the error for a result's code, whose high byte names the phase in which it arose."""
    phase = code >> 8 & 0xFF
    if phase in (1, 2):
        return LoadError(code, message)
    if phase == 3:
        return LinkError(code, message)
    return Trap(code, message)
