"""What a spare worker is asked to load before it takes the place of another one."""

from msgspec import Struct


class Preload(Struct, frozen=True):
    """A function that will be called."""

    serial: int
    """The front's number for the set of modules that has the function."""
    function: int
    """The function's place in it."""
