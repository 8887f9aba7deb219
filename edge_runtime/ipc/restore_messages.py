"""What the parts of the node that bring a database back tell each other."""

from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from control.protocol import wire
from edge_runtime.ipc.frames import LocalFunction, Stored


class Assembled(Struct, frozen=True):
    """The database that was made of a backup's files, and what was found in it; from `oneshot.assemble`, in JSON."""

    ok: bool
    transaction: int
    at_ms: int
    """Unix milliseconds of when the last file was made."""
    bytes: int
    findings: list[str]
    """What is wrong with it, one sentence each; empty if it is whole."""
    schema_digest: str
    rows: dict[str, int]
    """How many rows its tables have, by their names in lower case."""
    stored: Stored
    """The release that it records."""


class PreparedDatabase(NamedTuple):
    """A whole database that may take the place of the node's."""

    folder: Path
    """A folder in the state directory with nothing but the file, which has the name of the node's, and is on disk."""
    stored: Stored
    """What the file says."""
    functions: list[LocalFunction]
    """The functions of its release, with their code."""


class ReplacedDatabase(NamedTuple):
    """The database that was the node's before another one took its place."""

    folder: Path
    """Where it is, with its log."""
    position: wire.BackupPosition | None
    """What its backup has of it, which is all; None if that isn't so."""
