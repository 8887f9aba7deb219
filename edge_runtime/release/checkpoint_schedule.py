"""Decides when the libsql file is checkpointed, and what calls may do while the write-ahead log is too long
(docs/adr/0025).

A checkpointer process moves the log into the database file while calls go on. Once little is left, it makes writers
wait for a moment and moves the rest, and the log restarts, unless a reader still reads from it.

If the database is backed up, the same process first puts what it moves into files (docs/adr/0074).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from control.protocol import wire
from edge_runtime import clock, wal
from edge_runtime.backup.local_files import LocalFiles, NotShipped
from edge_runtime.dispatch.pool import Pool
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient
from edge_runtime.wal import DatabaseSizes, Index, Pressure

log = logging.getLogger("skerry.checkpoints")

PERIOD: Final = 0.1
"""Seconds between two checks of the log's size."""
START: Final = 4 * 1024 * 1024
"""Bytes of the log from which it is moved into the database file."""
SHIPPED_TIMES: Final = 4
"""By how much that is more for a database that is backed up: moving the log then costs files, too, and most of the
pages in them are the same."""
SHIPPED_PART: Final = 8
"""It is at most the log's limit divided by this."""
PATIENCE_MS: Final = 5
"""Milliseconds that writers wait for readers that keep the log from restarting."""
LARGE_PATIENCE_MS: Final = 100
"""The same when the log is large."""
LARGE: Final = 4
"""The log is large once it has its limit divided by this."""
READERS_WAIT: Final = 1.0
"""Seconds that calls with SQL wait when the log is at its limit, before calls that may write are refused."""
PAUSE_CAP: Final = 1.0
"""The most seconds between two attempts while readers are in the way."""
FAILURE_CAP: Final = 30.0
"""The most seconds between two attempts while the disk fails."""
IDLE: Final = 10.0
"""Seconds after which an idle checkpointer is stopped, as it takes memory."""
BEGIN_LIMIT: Final = 30.0
"""Seconds that a new checkpointer has to open the file."""
FINISH_LIMIT: Final = 30.0
"""Seconds for the last checkpoint at an orderly stop."""
REMOVE_LIMIT: Final = 2.0
"""Seconds for the removal of the log after that."""
SETTLE_LIMIT: Final = 2.0
"""Seconds that a client waits for `settle`."""

TURN_LIMIT: Final = 5.0
"""Seconds that a release waits for a checkpoint that is being made, and for what was written before to be shipped,
while calls go on."""
BOUNDARY_LIMIT: Final = 1.0
"""Seconds for which a release's COMMIT waits for what was written since, while calls wait."""

FindPosition = Callable[[], Awaitable[wire.BackupPosition | None]]
"""Returns the last transaction before a release's, once nobody else can commit; None if it isn't known."""

_decode_shipped: Final = msgspec.json.Decoder(frames.Shipped).decode
_decode_done: Final = msgspec.json.Decoder(frames.Checkpointed).decode


class _Failed(Exception):
    """The checkpointer couldn't do what it was asked to; the message says why."""


async def no_position() -> None:
    """Return the position of a database that isn't backed up."""


def pressure(size: int, limit: int, before: Pressure, waited: float) -> Pressure:
    """Return what calls may do while the log has `size` bytes; `waited`: seconds since it reached its `limit`."""
    if size < (limit if before is Pressure.NONE else limit // 2):
        return Pressure.NONE
    return Pressure.REFUSE if before is Pressure.REFUSE or waited >= READERS_WAIT else Pressure.WAIT


def start(limit: int, *, ships: bool) -> int:
    """Return from how many bytes on the log is moved, if that is its limit; `ships`: whether it is backed up."""
    return max(START, min(START * SHIPPED_TIMES, limit // SHIPPED_PART)) if ships else START


def may_move(index: Index) -> bool:
    """Return whether a PASSIVE checkpoint may be requested: not once all frames are moved.

    The next COMMIT restarts such a log. If it does so while a PASSIVE checkpoint begins, SQLite up to 3.51.2 considers
    as many frames of the new log moved as the old one had, and their rows are lost (its WAL-reset bug, fixed in
    3.51.3).
    """
    return index.backfilled < index.frames


class CheckpointSchedule:
    """Watches the log's size and drives the checkpointer; `run` must be running while calls are."""

    def __init__(self, processes: ZygoteClient, pool: Pool, database: Path, limit: int, most: int) -> None:
        """`limit`: bytes of the log at which calls wait or are refused, not counting what releases wrote; `most`: the
        same, counting it."""
        self._processes = processes
        self._pool = pool
        self._database = database
        self.limit = limit
        self._most = most
        self.made = 0
        """How often the log has restarted since startup."""
        self.error = ""
        """Why the last checkpoint failed; empty if it didn't."""
        self._index: Index | None = None
        """The last reading of the log's index."""
        self._begun: Index | None = None
        """The log's index when everything was moved: the next COMMIT restarts the log."""
        self._exempt = 0
        """Bytes of the log that releases wrote."""
        self._before_release = 0
        self._needed = asyncio.Event()
        self._child: Child | None = None
        self._full_since = 0.0
        self._warned = False
        self._unsettled = False
        """The remains of a COMMIT that was cut off may still come back."""
        self._turn = asyncio.Lock()
        """Held by what asks the checkpointer, which does one thing at a time."""
        self._local = LocalFiles(database.parent.parent)
        self._ships = self._local.is_on
        """Whether the database is backed up: then the checkpointer stays, and holds back what isn't shipped."""
        self.backup_error = ""
        """Which part of the backup's history was lost, and why, as in `frames.Shipped`."""
        pool.worker_deaths.settle_commit = self.settle

    @property
    def size(self) -> int:
        """Bytes of the log up to its end."""
        return 0 if self._index is None else self._index.bytes

    def status(self) -> dict[str, Any]:
        """Return the part `database` of the node's status."""
        sizes = self.sizes()
        return {
            "bytes": sizes.file,
            "free_bytes": sizes.free,
            "disk_free": sizes.disk_free,
            "wal_file": sizes.log,
            "wal_bytes": self.size,
            "wal_limit": self.limit,
            "writes": ("open", "waiting", "refused")[self._pool.pressure.value],
            "checkpoint_error": self.error or None,
            "held_by": self._pool.held_by or None,
        }

    def sizes(self) -> DatabaseSizes:
        """Return how large the database is; zeros if that can't be read."""
        try:
            return wal.sizes(self._database)
        except OSError as error:
            log.error("the database's size can't be read: %s", error)
            return DatabaseSizes(0, 0, 0, 0)

    async def run(self) -> None:
        """Watch the log and checkpoint it until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch())
                group.create_task(self._work())
        finally:
            self._end_child()

    async def ship(self, *, afresh: bool = False) -> frames.Shipped:
        """Put everything that is committed now into files of the backup (`backup.local_files`), which begins if the
        database wasn't backed up. With `afresh` another history begins.

        A snapshot, which comes first in a history and where a part was lost, takes as long as the disk needs.

        Raises: NotShipped; what was shipped before stays.
        """
        self._ships = True
        async with self._turn:
            return await self._ship(frames.Ship(afresh))

    async def end_backup(self) -> None:
        """Ship nothing from now on, and remove all files of the backup. Raises: OSError."""
        async with self._turn:
            self._ships = False
            if (child := self._child) is not None:
                child.kill()
                await asyncio.shield(child.exited)
            self._end_child()
            self.backup_error = ""
            await asyncio.to_thread(self._local.end)

    @contextlib.asynccontextmanager
    async def before_commit(self) -> AsyncIterator[FindPosition]:
        """Keep the checkpointer free until the block ends, in which a release is committed; enter it before calls are
        held. What it returns never fails, and takes `BOUNDARY_LIMIT` seconds at most."""
        free = self._ships and await self._take_turn()
        try:
            yield self._position if free else no_position
        finally:
            if free:
                self._turn.release()

    async def _take_turn(self) -> bool:
        """Wait until nothing else asks the checkpointer, then ship most of what will have to be; return whether that
        was possible."""
        try:
            async with clock.timeout(TURN_LIMIT):
                await self._turn.acquire()
        except TimeoutError:
            log.warning("the backup can't tell where a release begins: the checkpointer is busy")
            return False
        try:
            async with clock.timeout(TURN_LIMIT):
                await self._ship(frames.Ship(boundary=True))
        except (NotShipped, TimeoutError) as error:
            log.warning("the backup can't tell where a release begins: %s", str(error) or "the disk is slow")
            self._turn.release()
            return False
        except BaseException:
            self._turn.release()
            raise
        return True

    async def _position(self) -> wire.BackupPosition | None:
        try:
            async with clock.timeout(BOUNDARY_LIMIT):
                shipped = await self._ship(frames.Ship(boundary=True))
        except (NotShipped, TimeoutError) as error:
            log.warning("the backup can't tell where a release begins: %s", str(error) or "the disk is slow")
            return None
        return wire.BackupPosition(shipped.lineage, shipped.last) if shipped.whole else None

    async def _ship(self, order: frames.Ship) -> frames.Shipped:
        """Ask for a shipment. Raises: NotShipped."""
        try:
            reply = await self._asked_to_ship(order)
            if reply.kind == frames.FAILED:
                raise NotShipped(frames.decode_failure(reply.body).message)
            shipped = frames.told(reply, frames.SHIPPED, _decode_shipped)
        except NotShipped:
            # It still holds back what isn't shipped.
            raise
        except (frames.ChildGone, NotBorn, TimeoutError, _Failed) as error:
            self._end_child()
            raise NotShipped(str(error) or "the checkpointer didn't open the file in time") from None
        except BaseException:
            self._end_child()
            raise
        if shipped.error != self.backup_error:
            self.backup_error = shipped.error
            if shipped.error:
                log.error("the backup's history is interrupted: %s", shipped.error)
        return shipped

    async def _asked_to_ship(self, order: frames.Ship) -> frames.Frame:
        """Return the checkpointer's answer. Raises: ChildGone, NotBorn, TimeoutError, _Failed."""
        if (child := self._child) is not None:
            try:
                return await child.ask(frames.SHIP, order, None)
            except frames.ChildGone:
                # It has ended since the last time: with all others when the database was exchanged, for instance.
                self._end_child()
        child = self._child = await self._new()
        return await child.ask(frames.SHIP, order, None)

    def before_release(self) -> None:
        """Note that a release's transaction is about to be committed: its bytes in the log don't count."""
        self.look()
        self._before_release = self.size

    def after_release(self) -> None:
        """Note that a release's transaction was committed."""
        self._exempt += max(0, (index.bytes if (index := self._read()) else 0) - self._before_release)
        self.look()

    async def settle(self) -> None:
        """Ensure that the remains of a COMMIT whose worker was killed don't come back: now if possible, else soon."""
        try:
            async with clock.timeout(SETTLE_LIMIT):
                await self._settle()
        except (frames.ChildGone, NotBorn, TimeoutError, _Failed) as error:
            text = "after a COMMIT that was cut off, the write-ahead log isn't settled yet: %s"
            log.warning(text, str(error) or "it takes long")
            self._unsettled = True
            self._needed.set()

    async def _settle(self) -> None:
        """Raises: ChildGone, NotBorn, TimeoutError, _Failed."""
        child = await self._new()
        with contextlib.closing(child):
            reply = await child.ask(frames.SETTLE, None, None)
        if reply.kind == frames.FAILED:
            raise _Failed(frames.decode_failure(reply.body).message)

    async def finish(self) -> None:
        """Leave a database file that is complete without its log; for an orderly stop, once the workers have exited."""
        path = wal.log_of(self._database)
        began = clock.monotonic()
        try:
            async with clock.timeout(FINISH_LIMIT), self._turn:
                while path.exists() and (path.stat().st_size or clock.monotonic() - began < REMOVE_LIMIT):
                    child, self._child = self._child or await self._new(), None
                    with contextlib.closing(child):
                        await self._ask(child, frames.Checkpoint("truncate", LARGE_PATIENCE_MS))
                        await child.ask(frames.CLOSE, None, None)
                    if path.exists():
                        # Workers that were killed may not be gone yet.
                        await clock.sleep(PERIOD)
        except (frames.ChildGone, NotBorn, TimeoutError, OSError, _Failed) as error:
            why = str(error) or "it takes long"
            log.warning("the write-ahead log couldn't be removed (%s): copy %s together with the database", why, path)

    async def _watch(self) -> None:
        while True:
            self.look()
            await clock.sleep(PERIOD)

    def _read(self) -> Index | None:
        try:
            return wal.read(self._database)
        except OSError as error:
            log.error("the write-ahead log's index can't be read: %s", error)
            return None

    def look(self) -> None:
        """Check the log's length, and act on it."""
        index = self._read()
        if index is None:
            return
        if self._index is not None and index.frames < self._index.frames:
            # The log has restarted.
            self._exempt = 0
        self._index = index
        if index != self._begun:
            self._begun = None
        if self._due:
            self._needed.set()
        elif self.error and not self._unsettled and self.size < start(self.limit, ships=self._ships):
            self._is_well()
        self._press(self._counted(index))

    def _counted(self, index: Index) -> int:
        """Return the bytes of the log that count for its limit."""
        return index.bytes if index.bytes >= self._most else max(0, index.bytes - self._exempt)

    def _is_long(self, index: Index) -> bool:
        """Return whether the log is so long that a backup which fails must not hold it back any more."""
        return self._ships and self._counted(index) >= self.limit // 2

    @property
    def _due(self) -> bool:
        return self.size >= start(self.limit, ships=self._ships) and self._begun is None

    def _press(self, size: int) -> None:
        mib = size >> 20
        if size < self.limit // LARGE:
            self._warned = False
        elif size >= self.limit // 2 and not self._warned:
            self._warned = True
            text = "the write-ahead log has %d MiB, and calls that write are refused above %d: %s"
            log.warning(text, mib, self.limit >> 20, self.error or "reading calls overlap all the time, or write fast")
        now, before = clock.monotonic(), self._pool.pressure
        if before is Pressure.NONE:
            self._full_since = now
        pressed = pressure(size, self.limit, before, now - self._full_since)
        if pressed is not before:
            if pressed is Pressure.REFUSE:
                log.error("the write-ahead log has %d MiB: calls that may write are refused until it has less", mib)
            elif before is Pressure.REFUSE:
                log.info("the write-ahead log is short again: calls may write")
            self._pool.pressure = pressed
            self._pool.feed()

    async def _work(self) -> None:
        failures = 0
        while True:
            try:
                async with clock.timeout(IDLE if self._child is not None and not self._ships else None):
                    await self._needed.wait()
            except TimeoutError:
                if not self._ships:
                    self._end_child()
                continue
            self._needed.clear()
            try:
                if self._unsettled:
                    await self._settle()
                    self._unsettled = False
                    log.info("the write-ahead log is settled")
                await self._begin_anew()
                failures = 0
                if self.error:
                    self._is_well()
            except (frames.ChildGone, NotBorn, TimeoutError, _Failed) as error:
                if not (self._ships and isinstance(error, _Failed)):
                    self._end_child()
                failures += 1
                why = str(error) or "the checkpointer didn't open the file in time"
                if why != self.error:
                    self.error = why
                    log.error("the database's checkpoint failed, and is tried again: %s", why)
                if self._unsettled:
                    self._needed.set()
                await clock.sleep(min(FAILURE_CAP, PERIOD * 2.0 ** min(failures - 1, 10)))

    def _is_well(self) -> None:
        self.error = ""
        log.info("checkpoints of the database are made again")

    async def _begin_anew(self) -> None:
        """Move the log into the database file until it can restart.

        Raises: ChildGone; NotBorn; TimeoutError; _Failed.
        """
        pause = PERIOD
        while self._due:
            async with self._turn:
                self._child = self._child or await self._new()
            # The earlier reading may be older than a checkpoint by another process.
            self.look()
            before = self._index
            assert before is not None  # noqa: S101
            started = time.monotonic()
            if may_move(before):
                await self._order(frames.Checkpoint("passive", unshipped=self._is_long(before)))
            took = time.monotonic() - started
            self.look()
            index = self._index
            assert index is not None  # noqa: S101
            moved = index.backfilled - before.backfilled
            if wal.may_step(index.frames - index.backfilled, moved, took):
                large = index.bytes >= self.limit // LARGE
                patience = LARGE_PATIENCE_MS if large else PATIENCE_MS
                mode: Literal["truncate", "restart"] = "truncate" if large else "restart"
                done = await self._order(frames.Checkpoint(mode, patience, self._is_long(index)))
                if not done.busy:
                    self.made += 1
                    self.look()
                    self._begun = self._index
                    return
            elif moved > 0:
                continue
            # Readers keep the log from restarting.
            await clock.sleep(pause)
            pause = min(PAUSE_CAP, pause * 2)
            self.look()

    async def _new(self) -> Child:
        child = await self._processes.birth("checkpointer")
        try:
            async with clock.timeout(BEGIN_LIMIT):
                first = await child.answer()
            if first.kind != frames.READY:
                raise _Failed(frames.decode_failure(first.body).message)
        except BaseException:
            child.close()
            raise
        return child

    async def _order(self, order: frames.Checkpoint) -> frames.Checkpointed:
        async with self._turn:
            child = self._child = self._child or await self._new()
            return await self._ask(child, order)

    async def _ask(self, child: Child, order: frames.Checkpoint) -> frames.Checkpointed:
        """Ask for a checkpoint, without a time limit: it takes as long as the disk needs."""
        reply = await child.ask(frames.CHECKPOINT, order, None)
        if reply.kind == frames.FAILED:
            raise _Failed(frames.decode_failure(reply.body).message)
        return frames.told(reply, frames.CHECKPOINTED, _decode_done)

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
