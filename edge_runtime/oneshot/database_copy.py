"""Copies a whole libsql file into one file without a log: a node's file while it serves, or a backup to be restored."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from control.protocol.counts import counted
from edge_runtime import files, wal
from edge_runtime.disk_space import DISK_RESERVE, fits
from edge_runtime.errors import CodedError
from edge_runtime.oneshot.database_guard import GuardFailed, guarded
from edge_runtime.oneshot.database_report import LIMIT
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, WRITE
from edge_runtime.sql.current_sqlite import FileAndLog
from edge_runtime.sql.database import HEAP_BYTES
from edge_runtime.sql.libsql_connection import open_file

PIECE: Final = 4 * 1024 * 1024
"""Bytes that are copied at once. Each piece is written to disk and dropped from memory, so that copying a large file
neither evicts other processes' pages nor delays their writes."""
PATIENCE: Final = 5.0
"""Seconds to wait for another process's lock."""
_TRIES: Final = 5000
"""Attempts to read the log's index, a millisecond apart: a process may be writing it."""


class CopyFailed(CodedError):
    """The file can't be copied. The partial copy has been removed."""


def copy_served(database: Path, target: Path, begun: Callable[[], None]) -> None:
    """Copy a node's file as it is at one moment, whether or not the node is serving; `begun` is called once that moment
    is past. `target` is a new file in a separate folder. The caller must have only one thread.

    Raises: CopyFailed, when that can't be done.
    """
    try:
        with guarded(database, reading=True) as guard:
            # Read after the transaction began: the log stays at least this long, or is completely in the file.
            index = _index(database)
            begun()
            log_bytes = 0 if index is None or index.frames == index.backfilled else index.bytes
            _check_room(target.parent, database.stat().st_size + 2 * log_bytes)
            _copy(database, target)
            if log_bytes:
                _copy(wal.log_of(database), wal.log_of(target), log_bytes)
            guard.check()
    except GuardFailed as error:
        code = error.code if error.code == "database_held" else "copy_failed"
        raise CopyFailed(code, f"The database can't be copied: {error}.") from None
    except OSError as error:
        raise CopyFailed("copy_failed", f"The database can't be copied to {target.parent}: {error}.") from None
    _join(target, 0 if index is None or not log_bytes else index.frames)


def copy_unused(source: Path, target: Path) -> None:
    """Copy a file that no process uses, with its log if it has one, or with the journal of a transaction that another
    program left open. `target` and the caller are as in `copy_served`.

    Raises: CopyFailed, when that can't be done.
    """
    log = wal.log_of(source)
    try:
        log_bytes = log.stat().st_size if wal.has_log(source) else 0
        _check_room(target.parent, source.stat().st_size + 2 * log_bytes)
        _copy(source, target)
        if log_bytes:
            _copy(log, wal.log_of(target))
        if (journal := wal.journal_of(source)).exists():
            _copy(journal, wal.journal_of(target))
    except OSError as error:
        raise CopyFailed("copy_failed", f"{source} can't be copied to {target.parent}: {error}.") from None
    _join(target, None if log_bytes else 0)


def _index(database: Path) -> wal.Index | None:
    """Return the log's index as it was at one moment; None for a file without a log.

    Raises: OSError, when it can't be read.
    """
    before, tries = wal.read(database), 0
    while wal.index_of(database).exists():
        index = wal.read(database)
        if index is not None and index == before:
            return index
        before, tries = index, tries + 1
        if tries > _TRIES:
            raise OSError(f"{wal.index_of(database)} can't be read")
        time.sleep(0.001)
    return None


def compact(path: Path) -> None:
    """Rewrite a copy without its free pages (VACUUM), in a separate process behind the fence. It needs disk space for
    twice the copy's size.

    Raises: CopyFailed, when that can't be done.
    """
    try:
        _check_room(path.parent, 2 * path.stat().st_size)
        why = _child(lambda: _vacuum(path), path)
    except OSError as error:
        why = str(error)
    if why:
        raise CopyFailed("copy_failed", f"The copy can't be written anew (VACUUM): {why}.")


def _vacuum(path: Path) -> str:
    """Return why the file can't be rewritten, or an empty string."""
    try:
        connection = open_file(path)
        fence.seal("worker")
        for statement in (f"PRAGMA hard_heap_limit = {HEAP_BYTES}", "PRAGMA temp_store = FILE", "VACUUM"):
            connection.execute(statement).fetchall()
        connection.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def sha256(path: Path) -> str:
    """Return the digest of a file. Raises: OSError, when it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_room(folder: Path, needed: int) -> None:
    free = files.free_bytes(folder)
    if not fits(needed, free):
        raise CopyFailed(
            "disk_full",
            f"The copy needs {needed >> 20} MiB in {folder}, and a reserve of {DISK_RESERVE >> 20} MiB, and its disk "
            f"has only {free >> 20} MiB free; free some space.",
        )


def _copy(source: Path, target: Path, length: int | None = None) -> None:
    """Copy a file, or its first `length` bytes. Raises: OSError, also if it is shorter."""
    with contextlib.ExitStack() as stack:
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, reading)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, writing)
        at = 0
        while length is None or at < length:
            piece = os.read(reading, PIECE if length is None else min(PIECE, length - at))
            if not piece:
                break
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(writing, rest) :]
            os.fdatasync(writing)
            os.posix_fadvise(writing, at, len(piece), os.POSIX_FADV_DONTNEED)
            at += len(piece)
        if length is not None and at < length:
            raise OSError(f"{source} has {at} bytes, and {length} belong to it")
        os.fsync(writing)


def _join(path: Path, frames: int | None) -> None:
    """Move the log of a copy into its file, so that only the file is left, in separate processes behind the fence. The
    log has this many `frames`; None if unknown.

    Raises: CopyFailed, when that can't be done.
    """
    why = _child(lambda: _move_log(path, frames), path) or _child(lambda: _end_log(path), path)
    if why:
        raise CopyFailed("copy_failed", f"The copy isn't whole: {why}.")
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files.sync_folder(path.parent)
    except OSError as error:
        raise CopyFailed("copy_failed", f"{path} can't be written to the disk: {error}.") from None


def _child(work: Callable[[], str], path: Path) -> str:
    def fenced() -> bytes:
        os.environ["SQLITE_TMPDIR"] = str(path.parent)
        fence.enclose([(path.parent, WRITE), RANDOM])
        return f"done:{work()}".encode()

    try:
        answer, status = run_forked(fenced, LIMIT)
    except TimeoutError as error:
        return str(error)
    if not answer:
        return f"the process that worked on it ended with status {os.waitstatus_to_exitcode(status)}"
    return answer.decode().removeprefix("done:")


def _move_log(path: Path, frames: int | None) -> str:
    """Return why the log can't be moved, or an empty string."""
    try:
        opened = FileAndLog(path, PATIENCE)
        fence.seal("checkpointer")
        # A transaction that another program left in a journal is rolled back here.
        opened.look()
        if frames != 0:
            # The last frame in particular must be there: a truncated log looks like one that ends earlier.
            log, moved = opened.checkpoint("passive") or (-1, 0)
            if log != moved or frames not in (None, log):
                return f"{moved} of {counted(log if frames is None else frames, 'page')} of its log could be moved"
        opened.close()
    except apsw.Error as error:
        return str(error)
    return ""


def _end_log(path: Path) -> str:
    """Return why the file can't be switched to work without a log, or an empty string. Without a log it can be opened
    even where nothing can be written beside it. The switch makes SQLite parse the schema, so libsql does it."""
    try:
        connection = open_file(path)
        fence.seal("worker")
        if connection.execute("PRAGMA journal_mode = DELETE").fetchall() != [("delete",)]:
            return "its journal mode can't be changed"
        connection.close()
    except ValueError as error:
        return str(error)
    return ""
