"""The checkpointer: a process that moves the write-ahead log into the database file, so that no COMMIT has to.

It may take as long as the disk needs. Writers wait for it only in the last step, after which the log begins anew; the
front asks for that once little is left to be moved. If the checkpointer is killed, the next one goes on with the log.

A current SQLite moves the log, and not libsql (`sql.current_sqlite`).
"""

import socket
from pathlib import Path
from typing import Final

import apsw
import msgspec

from edge_runtime import wal
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence
from edge_runtime.sql.current_sqlite import FileAndLog
from edge_runtime.sql.database import BUSY_MS
from edge_runtime.sql.session import code_of
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock

PATIENCE: Final = BUSY_MS / 1000
"""Seconds to wait for locks of processes that don't use the writer lock."""

_decode_checkpoint: Final = msgspec.json.Decoder(frames.Checkpoint).decode


def serve(sock: socket.socket, _page: memoryview, _slot: int, settings: frames.ChildSettings) -> None:
    """Do what the front asks for until it closes the socket or sends CLOSE."""
    path = Path(settings.state) / wal.FILE
    try:
        lock = WriterLock.open(path.with_name(LOCK_NAME))
        opened = FileAndLog(path, PATIENCE)
        opened.look()
    except (apsw.Error, OSError) as error:
        frames.send_json(sock, 0, frames.FAILED, frames.ChildFailure("database_unfit", str(error)))
        return
    fence.seal("checkpointer", lock.fileno())
    frames.send(sock, 0, frames.READY)
    reader = FrameReader(sock)
    while (frame := reader.next()) is not None and frame.kind != frames.CLOSE:
        try:
            match frame.kind:
                case frames.CHECKPOINT:
                    done = checkpoint(opened, lock, _decode_checkpoint(frame.body))
                    frames.send_json(sock, frame.request, frames.CHECKPOINTED, done)
                case frames.SETTLE:
                    settle(opened, lock, path)
                    frames.send(sock, frame.request, frames.DONE)
                case _:
                    raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no checkpointer knows")
        except (apsw.Error, OSError) as error:
            failure = frames.ChildFailure(code_of(str(error), "disk_failed"), str(error))
            frames.send_json(sock, frame.request, frames.FAILED, failure)
    opened.close()
    if frame is not None:
        # The file is closed: the last connection to be closed has removed the log.
        frames.send(sock, frame.request, frames.DONE)


def checkpoint(opened: FileAndLog, lock: WriterLock, order: frames.Checkpoint) -> frames.Checkpointed:
    """Move what can be moved. Raises: apsw.Error, when the disk fails."""
    if order.mode == "passive":
        return frames.Checkpointed(opened.checkpoint(order.mode) is None)
    lock.acquire()
    try:
        opened.wait_for_locks(order.patience_ms / 1000)
        return frames.Checkpointed(opened.checkpoint(order.mode) is None)
    finally:
        opened.wait_for_locks(PATIENCE)
        lock.release()


def settle(opened: FileAndLog, lock: WriterLock, path: Path) -> None:
    """Undo what a process that was killed in a COMMIT may have left. Raises: apsw.Error; OSError."""
    lock.acquire()
    try:
        with opened.writing():
            wal.cut(path)
    finally:
        lock.release()
