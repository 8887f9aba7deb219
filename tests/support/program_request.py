"""What is told of a program that is to be forked: `forked_programs` asks with it, `program_start` does it."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["programs", "nodes", "zygotes"]
"""Programs that need the same imports: each kind has a template of its own."""


@dataclass(frozen=True)
class Request:
    """A program that is wanted, and what it gets of who starts it."""

    words: list[str]
    """Its command line."""
    module: str
    """What follows ``-m``; empty where the program is `code`."""
    code: str
    """What follows ``-c``."""
    arguments: list[str]
    """`sys.argv`; Python puts the module's path in the place of the first."""
    paths: list[str]
    """What comes first in `sys.path`."""
    descriptors: list[int]
    """The numbers that the descriptors which come along are to have."""
    environment: dict[str, str]
    folder: str
    umask: int
    new_session: bool
    group: int
    """Process group; 0 for one of its own, -1 for that of the parent."""
    death: tuple[int, int] | None
    """The signal that the kernel sends when the parent ends, and the parent's id."""
    starts_others: bool
    """Whether it starts programs of ours, which then are forked as well."""
    real_compilation: bool
    """Whether it takes no code that `kept_code` has."""
