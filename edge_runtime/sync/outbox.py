"""What the agent has to remember over a restart: a report that waits for control, and the sync that is being done.

A node syncs one step after the other and asks for nothing new while a report waits, so there is at most one of each.
"""

import contextlib
import logging
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from control import wire
from edge_runtime import files

log = logging.getLogger("skerry.outbox")

T = TypeVar("T")


class Waiting(Struct):
    sync_id: str
    update: wire.SyncUpdate


class BegunSync(Struct):
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
        self.waits = self._file.exists()
        """A report waits, as far as this object has been told."""
        self._told = ""
        """Id of the sync whose report needn't be sent any more, though it may still be on disk."""

    def keep(self, sync_id: str, update: wire.SyncUpdate) -> None:
        """Keep a report, on disk when this returns; it takes an older one's place."""
        files.make_folder(self._file.parent)
        files.write(self._file, msgspec.json.encode(Waiting(sync_id, update)))
        self.waits = True

    def waiting(self) -> Waiting | None:
        """The report that waits; a file that can't be read is as good as none, control asks for the inventory then."""
        found = _read(self._file, Waiting)
        if found is not None and found.sync_id == self._told:
            found = None
        self.waits = found is not None
        return found

    def clear(self, sync_id: str) -> None:
        """Delete the stored report of a sync, once control has accepted it or refused it for good.

        Raises: OSError; the report is then ignored until the next start.
        """
        self._told = sync_id
        self.waits = False
        if self._file.exists():
            files.remove(self._file)

    def begun(self) -> BegunSync | None:
        """The attempt that didn't come to its end."""
        return _read(self._attempt, BegunSync)

    def begin(self, plan: wire.Plan) -> None:
        """A sync begins. Not synced to disk: a process that ends leaves it there, and a power failure may forget it."""
        earlier = self.begun()
        same = earlier is not None and earlier.generation == plan.generation
        crashes = earlier.crashes + 1 if earlier is not None and same else 0
        attempt = BegunSync(plan.sync_id, plan.generation, plan.release_number, crashes)
        files.make_folder(self._attempt.parent)
        self._attempt.write_bytes(msgspec.json.encode(attempt))

    def end(self) -> None:
        """The sync came to its end, good or bad."""
        self._attempt.unlink(missing_ok=True)


def _read(file: Path, kind: type[T]) -> T | None:
    """What a file of ours holds; None where it can't be read, as serving depends on none of them. One that is damaged
    is removed."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        log.error("%s is damaged, and is removed: %s", file, error)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s can't be read, and is left out: %s", file, error)
    return None
