"""What an applier is asked to load on trial, and what it answers: the frames TRY and TRIED of `frames`."""

from msgspec import Struct

from edge_runtime.ipc.frames import LocalFunction


class Try(Struct, frozen=True):
    """Functions to be loaded on trial."""

    functions: list[LocalFunction]
    secrets: dict[str, dict[str, str]] = {}
    """The secrets as in `frames.Load`."""

    def __repr__(self) -> str:
        return f"Try({self.functions!r})"


class Tried(Struct, frozen=True):
    bytes: int
    """Bytes of memory that the function takes while it runs, besides its guest's memory."""
