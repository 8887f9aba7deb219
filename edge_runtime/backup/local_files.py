"""The folder `backup` in the state directory, with the files of the database's backup that aren't at the store yet.

The checkpointer's process writes there (`shipper`), under a lock; the front reads, and removes what is at the store.
`lineage.json` says that the database is backed up, in which history, and how far that has come. A file counts once its
transaction is counted there: later ones are remains of a process that was killed, so no number is ever given twice.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from control.protocol import ltx
from control.protocol.wire import Lineage, Transaction
from edge_runtime import files, wal

SHIPMENTS: Final = 0
SNAPSHOTS: Final = 9
LEVELS: Final = (SHIPMENTS, SNAPSHOTS)
_HISTORY: Final = "lineage.json"
_REACHED: Final = "reached.json"
_TIME_DIGITS: Final = 12
_RANDOM_BYTES: Final = 10
"""A lineage's id: the milliseconds of its begin in hexadecimal, so that ids are in order of time, and random bytes."""
_ID: Final = re.compile("[0-9a-f]{32}")


T = TypeVar("T")


class NotShipped(Exception):
    """What was committed couldn't be put into files; the message says why. Try again after a while."""


class History(Struct, frozen=True):
    """One unbroken history of one database: how far it has come, and where in the write-ahead log that is."""

    lineage: Lineage
    inode: int
    """The database file's: another file has another history."""
    last: Transaction = 0
    """The last transaction that was put into a file."""
    at_ms: int = 0
    """Unix milliseconds: the database had nothing newer then."""
    broken: bool = True
    """Whether nothing but a snapshot can follow `last`: something was committed that no file has."""
    error: str = ""
    """Why it was broken; '' once the snapshot that follows is at the store."""
    salt: str = ""
    """Which log, in hexadecimal."""
    frames: int = 0
    """Frames of it that are in files."""
    checksum: str = ""
    """That of the last of them, in hexadecimal, which is one of all frames up to it; '' if it isn't known."""
    ends: list[Transaction] = []
    """Transactions after which a file must end, as a release begins there; older ones are left out."""
    moved: list[int] = []
    """Numbers of the database file (`identity`) since all of these frames are in it; empty if they may not be."""


class Reached(Struct, frozen=True):
    """The last file of a history that the store has."""

    last: Transaction
    at_ms: int
    """Unix milliseconds: the database had nothing newer then."""


class WaitingFile(NamedTuple):
    """A file that isn't at the store yet."""

    path: Path
    level: int
    """0 for what was written, 9 for a snapshot."""
    first: int
    last: int
    size: int
    """Bytes."""

    @property
    def lineage(self) -> str:
        return self.path.parents[1].name


def identity(database: Path) -> list[int]:
    """Return numbers of the database file that change when frames are moved into it. Raises: OSError."""
    info = database.stat()
    return [info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


class LocalFiles:
    """The files of a state directory; methods raise OSError, when the disk fails."""

    def __init__(self, state: Path) -> None:
        self.folder = state / wal.BACKUP

    @property
    def is_on(self) -> bool:
        """Whether the database is backed up."""
        return (self.folder / _HISTORY).exists()

    def lineage(self) -> History | None:
        """Return the history that is written now; None before the first, or if the file is damaged."""
        return _read(self.folder / _HISTORY, History)

    def reached(self, lineage: str) -> Reached | None:
        """Return the last file of a history that the store has; None if none is there, or that isn't known."""
        return _read(self.folder / lineage / _REACHED, Reached)

    def waiting(self) -> list[WaitingFile]:
        """Return the files that aren't at the store, in the order in which they go there."""
        now = self.lineage()
        found: list[WaitingFile] = []
        for lineage in self._lineages(now):
            every = sorted(self._in(lineage), key=lambda one: (one.last, one.first))
            if now is not None and lineage == now.lineage:
                every = [one for one in every if one.last <= now.last]
            found += _without_merged(every)
        return found

    def uploaded(self, file: WaitingFile) -> None:
        """Remove a file that is at the store, once it is on disk that it is there."""
        with contextlib.suppress(FileNotFoundError):
            # It may have been merged with others meanwhile; then the whole comes later.
            with file.path.open("rb") as opened:
                header = ltx.read_header(opened)
            files.write(file.path.parents[1] / _REACHED, msgspec.json.encode(Reached(file.last, header.at_ms)))
            file.path.unlink(missing_ok=True)
        now = self.lineage()
        if (now is None or now.lineage != file.lineage) and not any(self._in(file.lineage)):
            self.drop(file.lineage)

    def begin(self, inode: int) -> History:
        """Begin another history, of the database file with this inode."""
        newest = max((int(lineage[:_TIME_DIGITS], 16) for lineage in self._lineages(None)), default=0)
        at = max(time.time_ns() // 1_000_000, newest + 1)
        lineage = f"{at:0{_TIME_DIGITS}x}{secrets.token_hex(_RANDOM_BYTES)}"
        for level in LEVELS:
            files.make_folder(self.level(lineage, level))
        history = History(lineage, inode)
        self.write(history)
        return history

    def write(self, history: History) -> None:
        """Count all files up to `last`; their names are on disk before. If this fails, it is unknown whether they
        are counted."""
        files.write(self.folder / _HISTORY, msgspec.json.encode(history))

    def clean(self, history: History) -> None:
        """Remove what a process left that was killed before its file counted, and what was merged."""
        lineage = history.lineage
        for level in LEVELS:
            folder = self.level(lineage, level)
            files.make_folder(folder)
            for name in os.listdir(folder):
                if ltx.transactions(name) is None:
                    (folder / name).unlink(missing_ok=True)
        every = list(self._in(lineage))
        kept = set(_without_merged([one for one in every if one.last <= history.last]))
        for one in every:
            if one not in kept:
                one.path.unlink(missing_ok=True)

    def drop(self, lineage: str) -> None:
        """Remove all files of a history."""
        shutil.rmtree(self.folder / lineage, ignore_errors=True)

    def end(self) -> None:
        """End the backup, once no checkpointer runs: the next one begins another history."""
        (self.folder / _HISTORY).unlink(missing_ok=True)
        files.sync_folder(self.folder)
        for lineage in self._lineages(None):
            self.drop(lineage)

    def level(self, lineage: str, level: int) -> Path:
        """Return the folder of the files of a level."""
        return self.folder / lineage / str(level)

    def _lineages(self, now: History | None) -> list[str]:
        """Return the ids of all histories that have a folder, the one of now last."""
        with contextlib.suppress(FileNotFoundError):
            names = sorted(name for name in os.listdir(self.folder) if _ID.fullmatch(name))
            return sorted(names, key=lambda name: now is not None and name == now.lineage)
        return []

    def _in(self, lineage: str) -> Iterator[WaitingFile]:
        for level in LEVELS:
            folder = self.level(lineage, level)
            with contextlib.suppress(FileNotFoundError):
                for entry in os.scandir(folder):
                    if (span := ltx.transactions(entry.name)) is not None:
                        with contextlib.suppress(FileNotFoundError):
                            yield WaitingFile(folder / entry.name, level, *span, entry.stat().st_size)


def _without_merged(found: list[WaitingFile]) -> list[WaitingFile]:
    """Return files without the shipments that a wider one has all of: a merge puts it there before it removes them."""
    wide = [one for one in found if one.level == SHIPMENTS and one.first != one.last]

    def covered(one: WaitingFile) -> bool:
        return any(each.first <= one.first and one.last <= each.last and each.path != one.path for each in wide)

    return [one for one in found if one.level != SHIPMENTS or not covered(one)]


def _read(path: Path, kind: type[T]) -> T | None:
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(path.read_bytes(), type=kind)
    return None
