"""What the agent has to remember over a restart: a report that waits for control, and the sync that is being done.

A node syncs one step after the other and asks for nothing new while a report waits, so there is at most one of each.
"""

from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from control import wire
from edge_runtime import files

T = TypeVar("T")


class Waiting(Struct):
    sync_id: str
    update: wire.SyncUpdate


class Attempt(Struct):
    """A sync that was begun. If it is still there at a start, the node's process ended in the middle of it."""

    sync_id: str
    generation: int
    release_number: int
    crashes: int = 0
    """Processes that ended in the middle of a sync to this generation, one after the other, before this attempt."""


class Outbox:
    """`outbox/report.json` and `outbox/attempt.json` in the state directory."""

    def __init__(self, state: Path) -> None:
        self._file = state / "outbox" / "report.json"
        self._attempt = state / "outbox" / "attempt.json"

    def keep(self, sync_id: str, update: wire.SyncUpdate) -> None:
        """Keep a report, on disk when this returns; it takes an older one's place."""
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        files.write(self._file, msgspec.json.encode(Waiting(sync_id, update)))

    def waiting(self) -> Waiting | None:
        """The report that waits; a file that can't be read is as good as none, control asks for the inventory then."""
        return _read(self._file, Waiting)

    def clear(self) -> None:
        """Forget it: control has it, or will never take it."""
        if self._file.exists():
            files.remove(self._file)

    def begun(self) -> Attempt | None:
        """The attempt that didn't come to its end."""
        return _read(self._attempt, Attempt)

    def begin(self, plan: wire.Plan) -> None:
        """A sync begins. Not synced to disk: a process that ends leaves it there, and a power failure may forget it."""
        earlier = self.begun()
        same = earlier is not None and earlier.generation == plan.generation
        crashes = earlier.crashes + 1 if earlier is not None and same else 0
        attempt = Attempt(plan.sync_id, plan.generation, plan.release_number, crashes)
        self._attempt.parent.mkdir(mode=0o700, exist_ok=True)
        self._attempt.write_bytes(msgspec.json.encode(attempt))

    def end(self) -> None:
        """The sync came to its end, good or bad."""
        self._attempt.unlink(missing_ok=True)


def _read(file: Path, kind: type[T]) -> T | None:
    """What a file of ours holds; one that is damaged is removed."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        file.unlink(missing_ok=True)
        return None
