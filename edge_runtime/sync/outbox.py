"""What the agent must remember over a restart: a report that waits to be sent, and the sync under way.

A node does one sync at a time, and doesn't poll while a report waits, so there is at most one of each.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from control.protocol import wire
from edge_runtime import files

log = logging.getLogger("skerry.outbox")

T = TypeVar("T")


class Waiting(Struct):
    """A report that waits to be sent."""

    sync_id: str
    update: wire.SyncUpdate


class BegunSync(Struct):
    """A sync that has begun. If it is still there at a start, the node's process ended in the middle of it."""

    sync_id: str
    generation: int
    release_number: int
    crashes: int = 0
    """Processes in a row that ended in the middle of a sync to this generation, before this one."""


class Outbox:
    """The files `outbox/report.json` and `outbox/attempt.json` in the state directory."""

    def __init__(self, state: Path) -> None:
        self._file = state / "outbox" / "report.json"
        self._attempt = state / "outbox" / "attempt.json"
        self.waits = False
        """Whether a report waits, as far as this object knows."""
        # A folder that is closed to this user keeps no node from serving: doctor and the next sync say so.
        with contextlib.suppress(OSError):
            self.waits = self._file.exists()
        self._told = ""
        """Id of the sync whose report needn't be sent any more, though it may still be on disk."""

    def keep(self, sync_id: str, update: wire.SyncUpdate) -> None:
        """Store a report in place of an older one; it is on disk when this returns."""
        files.make_folder(self._file.parent)
        files.write(self._file, msgspec.json.encode(Waiting(sync_id, update)))
        self.waits = True
        # Control may have given the same sync again, from metadata that were restored.
        self._told = ""

    def waiting(self) -> Waiting | None:
        """Return the report that waits, if any. A file that can't be read counts as none: control then asks for the
        inventory."""
        report = _read(self._file, Waiting)
        if report is not None and report.sync_id == self._told:
            report = None
        self.waits = report is not None
        return report

    def clear(self, sync_id: str) -> None:
        """Delete the stored report of a sync, once control has accepted it or refused it for good.

        Raises: OSError; the report is then ignored until the next start.
        """
        self._told = sync_id
        self.waits = False
        if self._file.exists():
            files.remove(self._file)

    def begun(self) -> BegunSync | None:
        """Return the sync that has begun and not ended, if any."""
        return _read(self._attempt, BegunSync)

    def begin(self, plan: wire.Plan) -> None:
        """Note that a sync begins. The note outlives the process, but isn't synced: a loss of power may lose it."""
        earlier = self.begun()
        same = earlier is not None and earlier.generation == plan.generation
        crashes = earlier.crashes + 1 if earlier is not None and same else 0
        attempt = BegunSync(plan.sync_id, plan.generation, plan.release_number, crashes)
        files.make_folder(self._attempt.parent)
        self._attempt.write_bytes(msgspec.json.encode(attempt))

    def end(self) -> None:
        """Note that the sync came to its end, good or bad."""
        self._attempt.unlink(missing_ok=True)


def _read(file: Path, kind: type[T]) -> T | None:
    """Return what a file holds, None if it can't be read; remove it if it is damaged. Serving needs neither file."""
    try:
        data = file.read_bytes()
        # A loss of power empties a file that wasn't synced.
        return msgspec.json.decode(data, type=kind) if data else None
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.error("%s is damaged, and is removed: %s", file, error)
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    except OSError as error:
        log.error("%s can't be read, and is left out: %s", file, error)
    return None


@contextlib.contextmanager
def despite_the_disk(what: str) -> Iterator[None]:
    """Log an error of the disk instead of raising it: without `what`, the next poll or the lease sorts things out."""
    try:
        yield
    except OSError as error:
        log.error("%s can't be kept on disk: %s", what, error)
