"""What a power failure can leave of a node's files: the writes of a run are recorded, and states are built of them.

`tests/support/recorded_writes.c` records every write below a folder, with its syncs, in the order in which they were
made. A file system may keep of what wasn't synced what it likes: a state keeps of each file's unsynced writes all,
none, some, or some sectors of some, and of each folder's unsynced names a part. What was synced is there.
"""

import os
import random
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.guests.build import native
from tests.support import forked_programs

SECTOR: Final = 512
"""Bytes that a disk writes whole or not at all."""
SOURCE: Final = Path(__file__).with_name("recorded_writes.c")
_HEAD: Final = struct.Struct("<IcQQI")


class Record(NamedTuple):
    """One operation of the recorded run."""

    kind: str
    """C: file created; W: written; T: cut to a size; S: synced; R: renamed; X: exchanged with another name;
    U: removed; D: folder created; A: an answer that the test has seen."""
    inode: int
    number: int
    path: str
    data: bytes


def shared_library() -> Path:
    """The library that records, built once for its source."""
    made = native(SOURCE, "-shared", "-fPIC", "-O1")
    forked_programs.may_be_preloaded(made)
    return made


@dataclass(frozen=True)
class Recorder:
    """A log of what processes write below `folder`."""

    folder: Path
    log: Path
    library: Path

    def environment(self) -> Mapping[str, str]:
        """Return what makes a program and its children record."""
        return {
            "LD_PRELOAD": str(self.library),
            "SKERRY_RECORD_FOLDER": str(self.folder),
            "SKERRY_RECORD_LOG": str(self.log),
        }

    def answered(self, text: str) -> None:
        """Record that something was acknowledged: what it took is in the log before."""
        data = text.encode()
        with self.log.open("ab", buffering=0) as file:
            file.write(_HEAD.pack(_HEAD.size - 4 + len(data), b"A", 0, 0, 0) + data)

    def read(self) -> list[Record]:
        """Return the records so far, in order."""
        content = self.log.read_bytes()
        found, at = [], 0
        while at < len(content):
            length, kind, inode, number, path = _HEAD.unpack_from(content, at)
            start, at = at + _HEAD.size, at + 4 + length
            found.append(
                Record(kind.decode(), inode, number, content[start : start + path].decode(), content[start + path : at])
            )
        return found


@dataclass
class File:
    """A file's bytes on disk, and what was written since it was last synced."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Record] = field(default_factory=list)

    def sync(self) -> None:
        for record in self.pending:
            _apply(self.durable, record)
        self.pending.clear()

    def left(self, choice: random.Random) -> bytes:
        """Return what a power failure leaves of it."""
        content = bytearray(self.durable)
        way = choice.choice(("all", "none", "first", "some", "torn"))
        first = choice.randint(0, len(self.pending))
        for index, record in enumerate(self.pending):
            if way == "none" or (way == "first" and index >= first):
                break
            if way == "some" and choice.random() < 0.5:
                continue
            _apply(content, record, choice if way == "torn" else None)
        return bytes(content)


@dataclass
class Folder:
    """A folder's names on disk (each with its file's number), and what was done to them since it was last synced."""

    durable: dict[str, int] = field(default_factory=dict)
    pending: list[list[tuple[str, int | None]]] = field(default_factory=list)
    """Steps: names and their files' numbers, None where the name was taken away."""

    def sync(self) -> None:
        for step in self.pending:
            _name(self.durable, step)
        self.pending.clear()

    def left(self, choice: random.Random) -> dict[str, int]:
        """Return what a power failure leaves of it: changes of names reach the disk in their order."""
        names = dict(self.durable)
        count = len(self.pending)
        for step in self.pending[: choice.choice((0, choice.randint(0, count), count))]:
            _name(names, step)
        return names


class Disk:
    """The files below a folder, as far as records were played."""

    def __init__(self, root: Path) -> None:
        self.files: dict[int, File] = {}
        """By a number of their own, since an inode is given out again once its file is removed."""
        self.folders: dict[int, Folder] = {0: Folder()}
        """Likewise; 0 is `root`, which is there and empty before the first record."""
        self._numbers: dict[int, int] = {root.stat().st_ino: 0}
        """The number of each inode that is in use."""
        self._paths: dict[str, int] = {str(root): 0}
        """The number of each path, as the running system sees it."""

    def play(self, record: Record) -> None:
        """Take the next operation."""
        number = self._numbers.get(record.inode, -1)
        match record.kind:
            case "C" | "D":
                number = self._numbers[record.inode] = len(self.files) + len(self.folders)
                if record.kind == "C":
                    self.files[number] = File()
                else:
                    self.folders[number] = Folder()
                self._link(record.path, number)
            case "W" | "T":
                self.files[number].pending.append(record)
            case "S":
                (self.files.get(number) or self.folders[number]).sync()
            case "R":
                new = record.data.decode()
                for path in [path for path in self._paths if path.startswith(f"{record.path}/")]:
                    self._paths[new + path.removeprefix(record.path)] = self._paths.pop(path)
                number = self._paths.pop(record.path)
                if os.path.dirname(new) != os.path.dirname(record.path):
                    self._change(record.path, None)
                self._link(new, number)
            case "X":
                one, other = record.path, record.data.decode()
                moved = {
                    path: at for path, at in self._paths.items() if f"{path}/".startswith((f"{one}/", f"{other}/"))
                }
                for path in moved:
                    del self._paths[path]
                for path, at in moved.items():
                    old, new = (one, other) if f"{path}/".startswith(f"{one}/") else (other, one)
                    self._paths[new + path.removeprefix(old)] = at
                folder, name = os.path.split(one)
                step = [(name, self._paths[one]), (os.path.basename(other), self._paths[other])]
                self.folders[self._paths[folder]].pending.append(step)
            case "U":
                # Where a process is killed between making a file and telling of it, nothing has told of that file.
                if self._paths.pop(record.path, None) is not None:
                    self._change(record.path, None)

    def write(self, into: Path, choice: random.Random, without: Collection[str] = ()) -> None:
        """Write what a power failure leaves into the empty folder `into`; folders named in `without` are left empty."""
        self._write(into, 0, choice, without)

    def _write(self, into: Path, folder: int, choice: random.Random, without: Collection[str]) -> None:
        for name, number in self.folders[folder].left(choice).items():
            path = into / name
            if number in self.folders:
                path.mkdir(mode=0o700)
                if name not in without:
                    self._write(path, number, choice, without)
            else:
                path.write_bytes(self.files[number].left(choice))
                path.chmod(0o600)

    def _link(self, path: str, number: int) -> None:
        self._paths[path] = number
        self._change(path, number)

    def _change(self, path: str, number: int | None) -> None:
        folder, name = os.path.split(path)
        self.folders[self._paths[folder]].pending.append([(name, number)])


def _name(names: dict[str, int], step: list[tuple[str, int | None]]) -> None:
    """Give names to files, or take names away, in one step."""
    for name, number in step:
        if number is None:
            names.pop(name, None)
            continue
        # The name that the file had goes when it gets the other one.
        for other in [known for known, found in names.items() if found == number]:
            del names[other]
        names[name] = number


def _apply(content: bytearray, record: Record, torn: random.Random | None = None) -> None:
    if record.kind == "T":
        if torn is None or torn.random() < 0.5:
            del content[record.number :]
            content.extend(bytes(record.number - len(content)))
        return
    for start, sector in _sectors(record):
        if torn is not None and torn.random() < 0.5:
            continue
        content.extend(bytes(max(0, start - len(content))))
        content[start : start + len(sector)] = sector


def _sectors(record: Record) -> Iterator[tuple[int, bytes]]:
    at, end = record.number, record.number + len(record.data)
    while at < end:
        until = min(end, (at // SECTOR + 1) * SECTOR)
        yield at, record.data[at - record.number : until - record.number]
        at = until
