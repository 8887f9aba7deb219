"""The record of SQL that somebody ran on the node with `skerry-edge sql`: kept on disk until control has it.

The command stores a record before it runs the SQL, and holds a lock on it (flock) until it has noted the outcome. So an
unlocked record without an outcome belongs to a command that was killed.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from control.protocol import wire
from control.protocol.counts import counted
from edge_runtime import clock, files
from edge_runtime.sync import retries
from edge_runtime.sync.control_client import ControlClient, ControlRefused

log = logging.getLogger("skerry.sql")

FOLDER: Final = Path("outbox", "sql")
AGAIN: Final = 3600.0
"""Seconds until control is asked again if it doesn't know this message: it is an earlier version."""
MOST: Final = 1000
"""The most records that wait for control. Beyond them, only the number of runs is kept."""
SOON: Final = 60.0
"""Seconds until control is asked again if it couldn't take a record."""
_MORE: Final = "more"
"""The file in which runs without a record are counted."""
_SHOWN: Final = 8000
_REASON: Final = 2000
_USER: Final = 400


class MoreRuns(msgspec.Struct, frozen=True):
    """Runs while `MOST` records were waiting: they are counted, and reported to control as one run."""

    id: str
    first: datetime
    last: datetime
    reads: int = 0
    writes: int = 0

    def as_run(self) -> wire.SqlRun:
        """Return the record for control."""
        text = (
            f"-- {self.reads} reads and {self.writes} writes until {self.last.isoformat(timespec='seconds')}, of which "
            f"nothing else is known: {MOST} records were waiting for control"
        )
        return wire.SqlRun(self.id, self.first, "not recorded", "write" if self.writes else "read", text)


class SqlRunRecord:
    """A record that is being made, by the command."""

    def __init__(self, state: Path, run: wire.SqlRun) -> None:
        """Store the record; it is on disk when this returns. If too many wait, the run is only counted.

        Raises: OSError, when it can't be stored.
        """
        texts = {"statement": (run.statement, _SHOWN), "reason": (run.reason, _REASON), "user": (run.user, _USER)}
        kept = {name: _kept(text, most) for name, (text, most) in texts.items()}
        self._run = msgspec.structs.replace(run, **kept)
        self._file: Path | None = state / FOLDER / _name_of(run)
        files.make_folder(self._file.parent)
        with _locked(self._file.parent):
            if len(_records(self._file.parent)) >= MOST:
                _count(self._file.parent, run)
                self._file = None
                return
            # Locked before it has its name, so that it isn't mistaken for one whose command has exited.
            begun = self._file.with_suffix(".begun")
            self._lock = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            os.write(self._lock, msgspec.json.encode(self._run))
            os.fsync(self._lock)
            begun.replace(self._file)
            files.sync_folder(self._file.parent)

    def end(self, rows: int | None) -> None:
        """Note how many rows were read or changed; None if unknown. Raises: OSError, when it can't be stored."""
        if self._file is not None:
            files.write(self._file, msgspec.json.encode(msgspec.structs.replace(self._run, rows=rows)))
            os.close(self._lock)

    def drop(self) -> None:
        """Remove the record: nothing was read or changed. Raises: OSError."""
        if self._file is not None:
            files.remove(self._file)
            os.close(self._lock)


class SqlRunReports:
    """The agent's handling of the records: it logs them and reports them to control."""

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER
        self._logged: set[Path] = set()
        """Records that control doesn't have yet, all of which were logged. Their texts stay on disk."""
        self._not_before = 0.0

    @property
    def waiting(self) -> list[Path]:
        """Return the records that control doesn't have yet, oldest first."""
        return sorted(self._logged)

    async def look(self) -> None:
        """Find new records and log them."""
        for file in await asyncio.to_thread(_found, self._folder):
            if file in self._logged or (run := await asyncio.to_thread(_ended, file)) is None:
                continue
            self._logged.add(file)
            rows = "nobody knows how many rows" if run.rows is None else counted(run.rows, "row")
            because = f" (reason: {run.reason})" if run.reason else ""
            log.warning("%s by %s%s, %s: %s", run.kind, run.user, because, rows, run.statement)

    async def deliver(self, client: ControlClient) -> None:
        """Report what `look` found to control. Raises: NoAnswer, ControlRefused; the rest is reported later."""
        for file in self.waiting:
            if clock.monotonic() < self._not_before:
                return
            if (run := await asyncio.to_thread(_ended, file)) is None:
                self._logged.discard(file)
                continue
            try:
                await client.sql_run(run)
            except ControlRefused as refusal:
                if refusal.status >= 500:
                    # It may be only this record: the node's polls continue.
                    self._not_before = clock.monotonic() + SOON
                    log.warning("control can't take the record of SQL %s now: %s", run.id, refusal.message)
                    return
                if not retries.final(refusal.status):
                    raise
                if refusal.status in (404, 405):
                    self._not_before = clock.monotonic() + AGAIN
                    log.warning("control is of a version that can't be told of SQL on nodes: the records wait")
                    return
                log.error("control does not take the record of SQL %s: %s", run.id, refusal.message)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(files.remove, file)
            self._logged.discard(file)


def _found(folder: Path) -> list[Path]:
    """Return the records, oldest first; if there are none, turn counted runs into one."""
    if not _records(folder):
        with contextlib.suppress(OSError):
            _record_more(folder)
    return _records(folder)


def _records(folder: Path) -> list[Path]:
    """Return the records, oldest first."""
    try:
        return sorted(folder.glob("*.json"))
    except OSError:
        return []


def _name_of(run: wire.SqlRun) -> str:
    return f"{run.at.strftime('%Y%m%dT%H%M%S.%f')}-{run.id}.json"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from beginning or counting a record meanwhile. Raises: OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _count(folder: Path, run: wire.SqlRun) -> None:
    """Count a run without storing a record. Raises: OSError."""
    more = _more(folder) or MoreRuns(run.id, run.at, run.at)
    counted = (more.reads + 1, more.writes) if run.kind == "read" else (more.reads, more.writes + 1)
    files.write(folder / _MORE, msgspec.json.encode(MoreRuns(more.id, more.first, run.at, *counted)))


def _more(folder: Path) -> MoreRuns | None:
    """Return what was counted; None if nothing was, or it can't be read. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode((folder / _MORE).read_bytes(), type=MoreRuns)
    return None


def _record_more(folder: Path) -> None:
    """Make a record of what was counted, if anything was. Raises: OSError."""
    if not (folder / _MORE).exists():
        return
    with _locked(folder):
        if (more := _more(folder)) is not None:
            run = more.as_run()
            files.write(folder / _name_of(run), msgspec.json.encode(run))
        files.remove(folder / _MORE)


def _kept(text: str, most: int) -> str:
    """Return the first characters of a text in a form that control accepts: it refuses NUL and what isn't UTF-8."""
    return text[:most].encode(errors="replace").decode().replace("\0", "\ufffd")


def _ended(file: Path) -> wire.SqlRun | None:
    """Return a record if its command has ended."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(opened.fileno()), file.stat()):
                # It was replaced meanwhile, since its command has ended.
                return None
            return msgspec.json.decode(opened.read(), type=wire.SqlRun)
    except (BlockingIOError, FileNotFoundError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.error("%s can't be read: %s", file, error)
        with contextlib.suppress(OSError):
            file.replace(file.with_suffix(".damaged"))
        return None
