"""The processes that move the write-ahead log into the database file, by a current SQLite (`sql.current_sqlite`).

The checkpointer moves it while calls continue, so that no COMMIT has to. It may take as long as the disk needs. Writers
wait for it only in the last step, after which the log restarts; the front requests that once little is left to be
moved. If the checkpointer is killed, the next one continues with the log.

After a crash a log remains, and the first connection reads all of it (recovery). For a log of some GB on a slow disk
that takes longer than a child may take to be ready, so the zygote lets a separate child read and move it (`recover`)
before the front's first order, and before it forks one that opens the file with libsql. If a libsql connection is the
first one anyway, since all others have just been killed, nothing is lost: it reports a failed read, as SQLite does
(docs/adr/0025).
"""

import os
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import msgspec

from edge_runtime import database_users, wal
from edge_runtime.backup.local_files import LocalFiles
from edge_runtime.backup.shipper import Exchanged, Shipper
from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from edge_runtime.sandbox import fence
from edge_runtime.sql.current_sqlite import FileAndLog, name_of, result_of
from edge_runtime.sql.database import BUSY_MS
from edge_runtime.sql.session import code_of
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock

PATIENCE: Final = BUSY_MS / 1000
"""Seconds to wait for locks of processes that don't use the writer lock, or that are about to exit."""
PASSES: Final = 5
"""How often the log is moved before writers wait for the rest, while a snapshot is made."""
SHORT_PATIENCE_MS: Final = 5
"""Milliseconds that they wait for readers then."""
_UNREAD: Final = (
    apsw.SQLITE_IOERR,
    apsw.SQLITE_CANTOPEN,
    # SQLite reports some errors of the disk as this.
    apsw.SQLITE_CORRUPT,
    # A file that can't be opened for writing is opened for reading, without checking the log.
    apsw.SQLITE_READONLY,
)
"""Codes of errors after which the log may not have been read."""
_UNREAD_IN_CHECKPOINT: Final = (
    apsw.SQLITE_IOERR_READ,
    apsw.SQLITE_IOERR_SHORT_READ,
    apsw.SQLITE_CORRUPT,
    apsw.SQLITE_READONLY,
)
"""Extended codes of such errors in the checkpoint that follows, which reads the log again."""

_decode_checkpoint: Final = msgspec.json.Decoder(frames.Checkpoint).decode
_decode_ship: Final = msgspec.json.Decoder(frames.Ship).decode


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
    state, shipper = Path(settings.state), None
    while (frame := reader.next()) is not None and frame.kind != frames.CLOSE:
        try:
            match frame.kind:
                case frames.CHECKPOINT:
                    order = _decode_checkpoint(frame.body)
                    if shipper is None and LocalFiles(state).is_on:
                        try:
                            shipper = _shipper(settings)
                        except (apsw.Error, OSError):
                            if not order.unshipped:
                                raise
                    done = checkpoint(opened, lock, order, shipper)
                    frames.send_json(sock, frame.request, frames.CHECKPOINTED, done)
                case frames.SHIP:
                    if shipper is None:
                        shipper = _shipper(settings)
                    shorten = partial(shorten_log, opened, lock, path, shipper)
                    shipped = shipper.ship(_decode_ship(frame.body), shorten)
                    frames.send_json(sock, frame.request, frames.SHIPPED, shipped)
                case frames.SETTLE:
                    settle(opened, lock, path)
                    frames.send(sock, frame.request, frames.DONE)
                case _:
                    raise RuntimeError(f"the front sent a frame of kind {frame.kind}, which no checkpointer knows")
        except (apsw.Error, OSError) as error:
            failure = frames.ChildFailure(code_of(str(error), "disk_failed"), str(error))
            frames.send_json(sock, frame.request, frames.FAILED, failure)
            if isinstance(error, Exchanged):
                break
    if shipper is not None:
        shipper.close()
    opened.close()
    if frame is not None:
        # The file is closed: the last connection to be closed has removed the log.
        frames.send(sock, frame.request, frames.DONE)


def _shipper(settings: frames.ChildSettings) -> Shipper:
    return Shipper(Path(settings.state), settings.backup_limit, settings.wal_limit, PATIENCE)


def checkpoint(
    opened: FileAndLog, lock: WriterLock, order: frames.Checkpoint, shipper: Shipper | None = None
) -> frames.Checkpointed:
    """Move what can be moved; if the database is backed up, that is what is shipped, which all is before.

    Raises: apsw.Error, OSError, when the disk fails.
    """
    ships = shipper is not None and shipper.before_checkpoint(unshipped=order.unshipped)
    if order.mode == "passive":
        return frames.Checkpointed(opened.checkpoint(order.mode) is None)
    lock.acquire()
    try:
        opened.wait_for_locks(order.patience_ms / 1000)
        if ships and shipper is not None:
            busy = shipper.last_step(opened, order.mode)
        else:
            busy = opened.checkpoint(order.mode) is None
    finally:
        opened.wait_for_locks(PATIENCE)
        lock.release()
    if ships and shipper is not None:
        shipper.after_last_step(busy=busy)
    return frames.Checkpointed(busy)


def shorten_log(opened: FileAndLog, lock: WriterLock, path: Path, shipper: Shipper) -> None:
    """Move the log while the shipper makes a snapshot, and let it begin anew if nobody is in the way: otherwise the
    front asks for that (`release.checkpoint_schedule`). Raises: apsw.Error, OSError."""
    for _ in range(PASSES):
        before, began = wal.state(path), time.monotonic()
        if before.moved < before.frames:
            checkpoint(opened, lock, frames.Checkpoint("passive"), shipper)
        log, took = wal.state(path), time.monotonic() - began
        if wal.may_step(log.frames - log.moved, log.moved - before.moved, took):
            break
    # Where they write faster than that they wait for more, as the snapshot would never be made otherwise.
    checkpoint(opened, lock, frames.Checkpoint("restart", SHORT_PATIENCE_MS), shipper)


def settle(opened: FileAndLog, lock: WriterLock, path: Path) -> None:
    """Undo what a process that was killed during a COMMIT may have left. Raises: apsw.Error; OSError."""
    lock.acquire()
    try:
        with opened.writing():
            wal.cut(path)
    finally:
        lock.release()


class Unreadable(Exception):
    """The log can't be read now; the message says why and what to do."""


def is_left(database: Path) -> bool:
    """Return whether there is a log that no process has open. Raises: OSError."""
    return wal.has_log(database) and not database_users.is_open(database)


def recover(settings: frames.ChildSettings) -> None:
    """Recover the log in a child of this process, which has one thread, and wait for it however long it takes.

    Raises: Unreadable, when the log can't be read, and the child has said on stderr which error it was; or when there
        is no process for it.
    """
    parent, database = os.getpid(), Path(settings.state, wal.FILE)
    try:
        pid = os.fork()
    except OSError as error:
        raise Unreadable(f"the system can't make a process: {error}") from None
    if pid == 0:
        code = 1
        try:
            fence.die_with_parent(parent)
            fence.enter("checkpointer")
            _recover_here(database, settings)
            code = 0
        except apsw.Error as error:
            print(f"{wal.log_of(database)}: {error} ({name_of(error)})", file=sys.stderr)
        except OSError as error:
            print(f"{wal.log_of(database)}: {error}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if status:
        raise Unreadable(
            f"{wal.log_of(database)} can't be read, and holds what was committed last: nothing is served before it "
            "can be. Look at the disk (`dmesg`); restore a backup if it is lost"
        )


def _recover_here(database: Path, settings: frames.ChildSettings) -> None:
    """Recover the log in this process. Raises: apsw.Error, when it can't be read; OSError."""
    opened, shipper = FileAndLog(database, PATIENCE, create=True), None
    fence.seal("checkpointer")
    try:
        try:
            # The first transaction reads the whole log.
            with opened.writing():
                pass
        except apsw.Error as error:
            if result_of(error) & 0xFF in _UNREAD:
                raise
            # libsql will find anything else that is wrong with the file.
            print(f"{database}: its log stays as it is: {error}", file=sys.stderr)
            return
        if LocalFiles(Path(settings.state)).is_on:
            try:
                shipper = _shipper(settings)
            except (apsw.Error, OSError) as error:
                print(f"{database}: its log is moved without a backup of it: {error}", file=sys.stderr)
        try:
            if shipper is not None and shipper.before_checkpoint(unshipped=True):
                shipper.after_last_step(busy=shipper.last_step(opened, "truncate"))
            else:
                opened.checkpoint("truncate")
        except OSError as error:
            print(f"{database}: its log isn't in the backup: {error}", file=sys.stderr)
        except apsw.Error as error:
            if result_of(error) in _UNREAD_IN_CHECKPOINT:
                raise
            # A write has failed: a full disk, for example, can still be read.
            print(f"{database}: its log stays as it is: {error} ({name_of(error)})", file=sys.stderr)
    finally:
        if shipper is not None:
            shipper.close()
        opened.close()
