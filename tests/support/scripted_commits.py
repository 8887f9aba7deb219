"""Commits of a database without a node: what the checkpointer would put into files of its backup, as a test says it."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from control.protocol import ltx
from edge_runtime import wal
from edge_runtime.backup.local_files import LocalFiles
from edge_runtime.ipc import frames


class ScriptedCommits:
    """A database that goes through `states`, one with each `commit`; `ship` and `end_backup` are a checkpointer's."""

    def __init__(self, state: Path, states: Sequence[bytes]) -> None:
        self._files = LocalFiles(state)
        self._states = states
        self._index = wal.index_of(state / wal.FILE)
        self._index.parent.mkdir(parents=True, exist_ok=True)
        (state / wal.FILE).touch()
        self._at = 0
        self._shipped = -1
        """The state that is in files."""
        self.asked: list[bool] = []
        """For each shipment that was asked for: whether it was to begin another history."""
        self.ended = 0
        """How often the backup was ended."""
        self._write_index()

    @property
    def present(self) -> bytes:
        """The database as it is now."""
        return self._states[self._at]

    def commit(self) -> None:
        """Go on to the next state."""
        self._at += 1
        self._write_index()

    async def ship(self, *, afresh: bool = False) -> frames.Shipped:
        self.asked.append(afresh)
        history = self._files.lineage()
        if history is None or afresh:
            if history is not None:
                self._files.drop(history.lineage)
            history, self._shipped = self._files.begin(1), -1
        if self._shipped != self._at:
            before = b"" if self._shipped < 0 else self._states[self._shipped]
            history = msgspec.structs.replace(history, last=history.last + 1, broken=False)
            self._write(history.lineage, history.last, before)
            self._files.write(history)
            self._shipped = self._at
        pending = sum(file.size for file in self._files.waiting())
        return frames.Shipped(history.lineage, history.last, time.time_ns() // 1_000_000, pending)

    async def end_backup(self) -> None:
        self.ended += 1
        self._shipped = -1
        if self._files.folder.exists():
            self._files.end()

    def _write(self, lineage: str, number: int, before: bytes) -> None:
        data = self.present
        size = int.from_bytes(data[16:18], "big")
        pages = [(at // size + 1, data[at : at + size]) for at in range(0, len(data), size)]
        wrote = [(page, each) for page, each in pages if before[(page - 1) * size : page * size] != each]
        first, level = (number, 0) if before else (1, 9)
        header = ltx.Header(size, len(pages), first, number, time.time_ns() // 1_000_000)
        with (self._files.level(lineage, level) / ltx.name(first, number)).open("wb") as file:
            ltx.write(file, header, wrote)

    def _write_index(self) -> None:
        self._index.write_bytes(self._at.to_bytes(8) * 17)
