"""A zygote whose checkpointers move the log by Python's own SQLite, as those of earlier versions did.

It is run in place of `edge_runtime.children.zygote`.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.children import checkpointer, zygote


class OldFileAndLog:
    """What a checkpointer asks of `FileAndLog`."""

    def __init__(self, path: Path, patience: float, *, create: bool = False) -> None:
        self._connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")

    def wait_for_locks(self, patience: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}")

    def look(self) -> None:
        self._connection.execute("SELECT 1 FROM sqlite_schema").fetchall()

    def checkpoint(self, mode: str) -> tuple[int, int] | None:
        busy, *moved = self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return None if busy else tuple(moved)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        yield
        self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()


if __name__ == "__main__":
    checkpointer.FileAndLog = OldFileAndLog  # type: ignore[misc, assignment]
    zygote.main(sys.argv[1])
