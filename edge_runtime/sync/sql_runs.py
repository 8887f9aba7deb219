"""The record of SQL that somebody has run on the node by `skerry-edge sql`: kept on disk until control has it.

The command keeps a record before it runs the SQL, and holds a lock on it (flock) until it has said how that ended. So a
record without an end that nobody holds is one of a command that was killed.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from control import wire
from edge_runtime import clock, files
from edge_runtime.sync import retries
from edge_runtime.sync.control_client import ControlClient, ControlRefused

log = logging.getLogger("skerry.sql")

FOLDER: Final = Path("outbox", "sql")
AGAIN: Final = 3600.0
"""Seconds until control is asked again that doesn't know this message: it is of an earlier version."""
SOON: Final = 60.0
"""Seconds until control is asked again that could not take a record."""
_SHOWN: Final = 8000
_REASON: Final = 2000
_USER: Final = 400


class SqlRunRecord:
    """A record that is being made, by the command."""

    def __init__(self, state: Path, run: wire.SqlRun) -> None:
        """Keep the record; it is on disk when this returns. Raises: OSError, when it can't be kept."""
        texts = {"statement": (run.statement, _SHOWN), "reason": (run.reason, _REASON), "user": (run.user, _USER)}
        kept = {name: _kept(text, most) for name, (text, most) in texts.items()}
        self._run = msgspec.structs.replace(run, **kept)
        self._file = state / FOLDER / f"{run.at.strftime('%Y%m%dT%H%M%S.%f')}-{run.id}.json"
        files.make_folder(self._file.parent)
        # Locked before it has its name, so that nobody takes it for one whose command has ended.
        begun = self._file.with_suffix(".begun")
        self._lock = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, msgspec.json.encode(self._run))
        os.fsync(self._lock)
        begun.replace(self._file)
        files.sync_folder(self._file.parent)

    def end(self, rows: int | None) -> None:
        """Note how many rows were read or changed; None where nobody knows. Raises: OSError, when it can't be kept."""
        files.write(self._file, msgspec.json.encode(msgspec.structs.replace(self._run, rows=rows)))
        os.close(self._lock)

    def drop(self) -> None:
        """Remove the record: nothing was read or changed. Raises: OSError."""
        files.remove(self._file)
        os.close(self._lock)


class SqlRunReports:
    """What the agent does with the records: it logs them, and tells control."""

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER
        self._waiting: dict[Path, wire.SqlRun] = {}
        """Records that control has not got yet, oldest first; each has been logged."""
        self._not_before = 0.0

    async def look(self) -> None:
        """Find new records, and log them."""
        for file, run in await asyncio.to_thread(self._new):
            self._waiting[file] = run
            rows = "nobody knows how many" if run.rows is None else run.rows
            because = f" (reason: {run.reason})" if run.reason else ""
            log.warning("%s by %s%s, %s rows: %s", run.kind, run.user, because, rows, run.statement)

    async def deliver(self, client: ControlClient) -> None:
        """Tell control of what `look` has found. Raises: NoAnswer, ControlRefused; what is left is told later."""
        for file, run in list(self._waiting.items()):
            if clock.monotonic() < self._not_before:
                return
            try:
                await client.sql_run(run)
            except ControlRefused as refusal:
                if refusal.status >= 500:
                    # It may be this record alone: the node's polls go on.
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
            del self._waiting[file]

    def _new(self) -> Iterator[tuple[Path, wire.SqlRun]]:
        found = []
        with contextlib.suppress(OSError):
            for file in sorted(self._folder.glob("*.json")):
                if file not in self._waiting and (run := _ended(file)) is not None:
                    found.append((file, run))
        return iter(found)


def _kept(text: str, most: int) -> str:
    """Return the first characters of a text, as control takes them: it refuses what isn't UTF-8, and NUL."""
    return text[:most].encode(errors="replace").decode().replace("\0", "\ufffd")


def _ended(file: Path) -> wire.SqlRun | None:
    """Return a record whose command has ended."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(opened.fileno()), file.stat()):
                # It was replaced meanwhile, as its command has ended.
                return None
            return msgspec.json.decode(opened.read(), type=wire.SqlRun)
    except (BlockingIOError, FileNotFoundError):
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.error("%s can't be read: %s", file, error)
        with contextlib.suppress(OSError):
            file.replace(file.with_suffix(".damaged"))
        return None
