"""The report that control could not be told: it waits on disk and goes first, after a restart too.

A node syncs one step after the other and asks for nothing new while a report waits, so there is at most one.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from control import wire
from edge_runtime import files


class Waiting(Struct):
    sync_id: str
    update: wire.SyncUpdate


class Outbox:
    """`outbox/report.json` in the state directory."""

    def __init__(self, state: Path) -> None:
        self._file = state / "outbox" / "report.json"

    def keep(self, sync_id: str, update: wire.SyncUpdate) -> None:
        """Keep a report, on disk when this returns; it takes an older one's place."""
        self._file.parent.mkdir(mode=0o700, exist_ok=True)
        files.write(self._file, msgspec.json.encode(Waiting(sync_id, update)))

    def waiting(self) -> Waiting | None:
        """The report that waits; a file that can't be read is as good as none, control asks for the inventory then."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Waiting)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            self.clear()
            return None

    def clear(self) -> None:
        """Forget it: control has it, or will never take it."""
        if self._file.exists():
            files.remove(self._file)
