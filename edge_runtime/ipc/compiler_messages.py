"""What a compiler is asked for, and what it answers: the frames COMPILE, TRY and VERIFY of `frames`."""

from msgspec import Struct

from edge_runtime.ipc.frames import LocalFunction


class Compile(Struct, frozen=True):
    """An artifact to be compiled."""

    artifact: str
    """Path of the wasm."""
    sha256: str
    folder: str
    """Path of a folder for the compiler alone, which makes it: its files go there."""
    level: int
    """The level of optimization, as in `aot_cache`."""


class Compiled(Struct, frozen=True):
    digest: str
    """sha256 of the AOT file in hex."""


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


class Verify(Struct, frozen=True):
    """Files to be checked."""

    files: list[tuple[str, str]]
    """Path of each file, and the sha256 that it must have."""


class Verified(Struct, frozen=True):
    damaged: list[str]
    """Paths of the files that can't be read, or have another sha256."""
