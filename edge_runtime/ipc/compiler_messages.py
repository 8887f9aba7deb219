"""What a compiler is asked for, and what it answers: the frames COMPILE and VERIFY of `frames`."""

from typing import Annotated

from msgspec import Meta, Struct


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
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """sha256 of the AOT file in hex."""


class Verify(Struct, frozen=True):
    """Files to be checked."""

    files: list[tuple[str, str]]
    """Path of each file, and the sha256 that it must have."""


class Verified(Struct, frozen=True):
    damaged: list[str]
    """Paths of the files that can't be read, or have another sha256."""
