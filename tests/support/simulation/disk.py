"""A node's disk: files in memory that outlive the node's processes, and what a process has of them."""

from dataclasses import dataclass, field

from control.protocol import wire
from edge_runtime.ipc.frames import LocalRelease
from tests.support.simulation.processes import Process


@dataclass
class Disk:
    """What is left of a node when its process is killed."""

    files: dict[str, bytes] = field(default_factory=dict)
    unsynced: set[str] = field(default_factory=set)
    """Files that a loss of power may forget."""
    inventory: wire.Inventory = field(default_factory=wire.Inventory)
    """What the libsql file holds;"""
    release: LocalRelease | None = None
    """and its release."""
    lost: set[str] = field(default_factory=set)
    """sha256 of the artifacts that are damaged."""

    def lose_power(self) -> None:
        """What was not synced to the disk is gone."""
        for name in self.unsynced:
            self.files.pop(name, None)
        self.unsynced.clear()


class DiskPath:
    """A path of one process on a node's disk: as much of `pathlib.Path` as the program uses of it there.

    What a process does here after its death changes nothing.
    """

    def __init__(self, disk: Disk, process: Process, name: str = "") -> None:
        self._disk = disk
        self._process = process
        self._name = name

    def __truediv__(self, name: str) -> "DiskPath":
        return DiskPath(self._disk, self._process, f"{self._name}/{name}")

    def __str__(self) -> str:
        return self._name

    @property
    def parent(self) -> "DiskPath":
        return DiskPath(self._disk, self._process, self._name.rpartition("/")[0])

    def absolute(self) -> "DiskPath":
        return self

    def glob(self, _pattern: str) -> list["DiskPath"]:
        """Nobody runs SQL on a node by hand in a run, so its folder of such records is empty."""
        return []

    def exists(self) -> bool:
        return self._name in self._disk.files

    def read_bytes(self) -> bytes:
        try:
            return self._disk.files[self._name]
        except KeyError:
            raise FileNotFoundError(self._name) from None

    def write_bytes(self, data: bytes) -> None:
        """Write without a sync."""
        self._process.step(f"disk.write{self._name}")
        self._disk.files[self._name] = data
        self._disk.unsynced.add(self._name)

    def unlink(self, missing_ok: bool = False) -> None:
        self._process.step(f"disk.unlink{self._name}")
        self._disk.files.pop(self._name, None)
        self._disk.unsynced.discard(self._name)

    def replace_with(self, data: bytes) -> None:
        """Have these bytes on disk, synced, in one step; a process may die before it and after it."""
        self._process.step(f"disk.before{self._name}")
        self._disk.files[self._name] = data
        self._disk.unsynced.discard(self._name)
        self._process.step(f"disk.after{self._name}")


class DiskFiles:
    """In the place of the module `edge_runtime.files`."""

    @staticmethod
    def make_folder(_path: DiskPath) -> None:
        """A folder needs no making."""

    @staticmethod
    def write(path: DiskPath, data: bytes, _mode: int = 0) -> None:
        path.replace_with(data)

    @staticmethod
    def stamp(path: DiskPath) -> tuple[int, ...]:
        """Nobody changes a node's files from outside in a run."""
        return (1,) if path.exists() else ()

    @staticmethod
    def remove(path: DiskPath) -> None:
        path.unlink()
