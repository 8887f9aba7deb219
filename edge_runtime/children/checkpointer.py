"""The checkpointer: a process that moves the write-ahead log into the database file, so that no COMMIT has to.

It may take as long as the disk needs. Writers wait for it only in the last step, after which the log begins anew; the
front asks for that once little is left to be moved. If the checkpointer is killed, the next one goes on with the log.

Python's own SQLite moves the log: if a read of the log fails, libsql takes zeros for what it couldn't read, and would
write them into the file (docs/adr/0025).
"""

import socket
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence
from edge_runtime.sql import database
from edge_runtime.sql.database import LibsqlDatabase
from edge_runtime.sql.rows import CheckpointRow
from edge_runtime.sql.session import code_of
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock

_PRAGMAS: Final = {
    "passive": "PRAGMA wal_checkpoint(PASSIVE)",
    "restart": "PRAGMA wal_checkpoint(RESTART)",
    "truncate": "PRAGMA wal_checkpoint(TRUNCATE)",
}

_decode_checkpoint: Final = msgspec.json.Decoder(frames.Checkpoint).decode


def serve(sock: socket.socket, _page: memoryview, _slot: int, settings: frames.ChildSettings) -> None:
    """Do what the front asks for until it closes the socket or sends CLOSE."""
    try:
        opened = connect(Path(settings.state) / database.FILE)
    except (sqlite3.Error, OSError) as error:
        frames.send_json(sock, 0, frames.FAILED, frames.ChildFailure("database_unfit", str(error)))
        return
    with opened:
        fence.seal("checkpointer", opened.lock.fileno())
        frames.send(sock, 0, frames.READY)
        reader = FrameReader(sock)
        while (frame := reader.next()) is not None and frame.kind != frames.CLOSE:
            try:
                match frame.kind:
                    case frames.CHECKPOINT:
                        done = checkpoint(opened, _decode_checkpoint(frame.body))
                        frames.send_json(sock, frame.request, frames.CHECKPOINTED, done)
                    case frames.SETTLE:
                        settle(opened)
                        frames.send(sock, frame.request, frames.DONE)
                    case _:
                        raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no checkpointer knows")
            except (sqlite3.Error, OSError) as error:
                failure = frames.ChildFailure(code_of(str(error), "disk_failed"), str(error))
                frames.send_json(sock, frame.request, frames.FAILED, failure)
    if frame is not None:
        # The file is closed: the last connection to be closed has removed the log.
        frames.send(sock, frame.request, frames.DONE)


def connect(path: Path) -> LibsqlDatabase:
    """Open the file by Python's own SQLite. Raises: sqlite3.Error, OSError."""
    lock = WriterLock.open(path.with_name(LOCK_NAME))
    try:
        opened = LibsqlDatabase(
            sqlite3.connect(path, timeout=database.BUSY_MS / 1000, isolation_level=None), lock, path
        )
        # What is moved must be on disk before the log may begin anew.
        opened.rows("PRAGMA synchronous = FULL")
        opened.rows("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        lock.close()
        raise
    return opened


def checkpoint(opened: LibsqlDatabase, order: frames.Checkpoint) -> frames.Checkpointed:
    """Move what can be moved. Raises: sqlite3.Error, when the disk fails."""
    if order.mode == "passive":
        return _run(opened, order)
    opened.lock.acquire()
    try:
        opened.rows(f"PRAGMA busy_timeout = {int(order.patience_ms)}")
        return _run(opened, order)
    finally:
        opened.rows(f"PRAGMA busy_timeout = {database.BUSY_MS}")
        opened.lock.release()


def _run(opened: LibsqlDatabase, order: frames.Checkpoint) -> frames.Checkpointed:
    row = opened.read(CheckpointRow, _PRAGMAS[order.mode])[0]
    return frames.Checkpointed(bool(row.busy), row.log, row.checkpointed)


def settle(opened: LibsqlDatabase) -> None:
    """Undo what a process that was killed in a COMMIT may have left. Raises: sqlite3.Error; OSError."""
    opened.lock.acquire()
    try:
        opened.drop_uncommitted()
    finally:
        opened.lock.release()
