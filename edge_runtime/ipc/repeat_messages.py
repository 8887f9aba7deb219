"""What a repeater is asked for, and what it answers: the frames REPEAT and REPEATED of `frames`."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from edge_runtime.ipc.frames import LocalFunction

PLACE: Final = 300
"""Characters of a place at most."""


class Repeat(Struct, frozen=True):
    """A call that trapped, of a function without grants."""

    function: LocalFunction
    head: bytes
    """As in the call's frame (`call_head`)."""
    body: bytes
    secrets: dict[str, str]
    """The values of the secrets that the function's manifest names."""

    def __repr__(self) -> str:
        return f"Repeat({self.function!r})"


class Repeated(Struct, frozen=True):
    place: Annotated[str, Meta(max_length=PLACE)]
    """In which function of the module it trapped, for people; empty where it didn't, or that isn't known."""
