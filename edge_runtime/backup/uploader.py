"""Has what was committed put into files each interval, and puts these to the store, in order.

Two loops run beside the calls while control wants a backup. One looks, each interval, whether a COMMIT was made since
the last files (the header of the log's index says so), and only then asks the checkpointer for more. The other one puts
the files that wait to the places that control gives, one after the other, as long as that takes. Nothing waits for
either: polls, syncs and calls have connections and processes of their own.

The MD5 goes with each file, and the store compares it before there is an object. No file is ever put over another
one, so where an answer was lost, control is asked what is there: the same bytes are success. Others mean that two disks
write one history, which is given up loudly: another one begins, with a snapshot.

Whether there is a backup outlasts a restart (`backup.json`): a node that can't reach control goes on with its files.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from control.protocol import faults, ltx, wire
from edge_runtime import clock, files, wal
from edge_runtime.backup import upload_rules
from edge_runtime.backup.local_files import LocalFiles, NotShipped, WaitingFile
from edge_runtime.backup.upload_rules import Comparison, Outcome, UploadPlace, name_of
from edge_runtime.errors import CodedError
from edge_runtime.ipc import frames
from edge_runtime.sync.control_client import ANSWER_TIMEOUT, ControlClient, ControlRefused, NoAnswer
from edge_runtime.token_bucket import TokenBucket

FILE: Final = "backup.json"
"""Whether there is a backup, in the state directory."""
STALL: Final = 30.0
"""Seconds without a byte that the other side takes, after which an upload is given up and made again."""
SPREAD: Final = 60.0
"""The most seconds by which the first files are late, so that a group's nodes don't send all at once."""
TOLD: Final = 3600.0
"""Seconds for which it is told that a part of the history was lost."""
AFRESH_EVERY: Final = 600.0
"""The fewest seconds from one history that was given up to the next: each costs a snapshot of the whole database."""

FINISH_ROUNDS: Final = 3
"""How many times what was written meanwhile is brought to the store, too, while somebody waits for that."""
FINISH_PAUSE: Final = 0.02
"""Seconds between two looks whether the store has everything, while somebody waits for that."""

log = logging.getLogger("skerry.backup")


class BackupSetting(Struct, frozen=True):
    """The content of `backup.json`."""

    interval: float
    """Seconds between two uploads."""
    node: str
    """The id of the node whose backup the files in the folder are."""


@dataclass(frozen=True)
class Measured:
    """A file that is to be put."""

    size: int
    md5: bytes
    at: float
    """When the file was made (Unix seconds): all that was committed before is in it or in those before it."""


class Checkpoints(Protocol):
    """Makes the files: `release.checkpoint_schedule.CheckpointSchedule`."""

    async def ship(self, *, afresh: bool = False) -> frames.Shipped:
        """Put all that is committed into files; `afresh`: of another history. Raises: NotShipped."""

    async def end_backup(self) -> None:
        """Make no more files, keep nothing back for them, and remove those that wait. Raises: OSError."""


class _Missing(Exception):
    """The file isn't there any more: it was merged with those after it, or its history was given up."""


class _Ended(Exception):
    """The file's history can't go on; the message says why."""


class _Waits(Exception):
    """The file can't be put, though control and the store answer; the message says why."""


class Uploader:
    """The node's part of its backup, while `run` is running."""

    def __init__(
        self,
        state: Path,
        checkpoints: Checkpoints,
        bandwidth: int,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`checkpoints` makes the files; `bandwidth` is in bytes a second, 0 for no limit."""
        self._state = state
        self._database = state / wal.FILE
        self._files = LocalFiles(state)
        self._checkpoints = checkpoints
        self._jitter = jitter
        self._piece = upload_rules.piece(bandwidth)
        self._bucket = TokenBucket(self._piece, bandwidth) if bandwidth else None
        self._kept = _read(state / FILE)
        self._node = ""
        self._client: ControlClient | None = None
        self._joined = asyncio.Event()
        """Set while there is a session to control."""
        self._changed = asyncio.Event()
        """Set when the interval is another one."""
        self._look = asyncio.Event()
        """Set when a shipment must be made before its time."""
        self._begun = self._looked = 0
        """How many times it was looked whether there is something to ship, and which of them was done last."""
        self._something = asyncio.Event()
        """Set when files may wait."""
        self.tell_soon: Callable[[], None] = lambda: None
        """Called when control should hear of the backup's state soon."""
        self.uploads = 0
        """Files that were put since the start."""
        self.failures = 0
        """Attempts that failed since the start, to make files or to put one."""
        self._since = clock.now().timestamp()
        """When the backup was turned on, or the process started."""
        self._stamp: bytes | None = None
        """What the log's index said before the last shipment; None if there was none since the start."""
        self._shipped: frames.Shipped | None = None
        self._reached = ("", 0)
        """Lineage and transaction up to which the store has all."""
        self._reached_at = 0.0
        """Until when the database had nothing newer (Unix seconds); 0 if the store has nothing."""
        self._pending = 0
        self._places: dict[tuple[str, str], UploadPlace] = {}
        """By lineage and name."""
        self._life = 0.0
        """How long the last places were valid."""
        self._doubtful = True
        """Whether the next file may be at the store already: at a start, and after a lost answer."""
        self._measured: tuple[Path, Measured] | None = None
        self._afresh = False
        """Whether the next shipment begins another history; nothing of the present one is put until then."""
        self._afresh_from = float("-inf")
        self._not_shipped = self._not_put = ""
        """Why that failed the last time; empty if it didn't."""
        self._lost, self._lost_until = "", float("-inf")
        """Which part of the history was lost, and until when that is told."""

    # What the agent and the front see

    @property
    def interval(self) -> float:
        """Return the seconds between two uploads; 0 if there is no backup."""
        return self._kept.interval

    def use(self, client: ControlClient, node_id: str) -> None:
        """Use this session from now on, which is one of the node with this id."""
        self._client, self._node = client, node_id
        self._places.clear()
        self._joined.set()
        if self._kept.node and self._kept.node != node_id:
            # What was put before is under another node's prefix.
            log.warning("this machine is another node now: its backup begins with a snapshot")
            self._afresh = True
            self._look.set()

    async def take(self, interval: float) -> None:
        """Back up each `interval` seconds from now on; 0 to end the backup."""
        before = self._kept
        self._kept = BackupSetting(interval, before.node or self._node if interval else "")
        if interval and not before.interval:
            self._since = clock.now().timestamp()
        await self._keep()
        if interval:
            log.info("what is written here is put to the store every %g s", interval)
        elif before.interval:
            log.info("what is written here isn't backed up any more")
        self._changed.set()
        self._look.set()

    async def finish(self) -> wire.BackupPosition | None:
        """Bring all that was committed until now to the store; return the position there. None if others write on,
        there is no backup, or the store doesn't take it now. The caller limits the time."""
        for _ in range(FINISH_ROUNDS):
            # What is under way may have begun before.
            wanted, aim = self._begun + 1, None
            self._look.set()
            while aim is None or self._reached < (aim.lineage, aim.last):
                if not self.interval or self._not_shipped or self._not_put:
                    return None
                if self._has_all():
                    break
                await clock.sleep(FINISH_PAUSE)
                if aim is None and self._looked >= wanted:
                    aim = self._shipped
            if self._has_all():
                return wire.BackupPosition(*self._reached)
        return None

    def state(self) -> wire.BackupState | None:
        """Return what polls report; None if there is no backup, or nothing to say of it yet."""
        self._has_all()
        lineage, reached = self._reached
        if not lineage and self._shipped is not None:
            lineage = self._shipped.lineage
        if not self.interval or not (lineage or self._error):
            return None
        at = max(0, int(self._reached_at))
        return wire.BackupState(lineage or wire.NO_LINEAGE, reached, at, self._pending, self._error)

    def status(self) -> dict[str, Any] | None:
        """Return the part `backup` of the node's status; None if there is no backup."""
        if not self.interval:
            return None
        state = self.state()
        lineage = state.lineage if state is not None else wire.NO_LINEAGE
        return {
            "interval": self.interval,
            "lineage": None if lineage == wire.NO_LINEAGE else lineage,
            "reached": self._reached[1],
            "lag_seconds": round(self.lag(), 3),
            "pending_bytes": self._pending,
            "uploads": self.uploads,
            "failures": self.failures,
            "error": self._error or None,
        }

    def lag(self) -> float:
        """Return how many seconds the store is behind the database; 0 while it has everything.

        That is since when there is something that it hasn't got, by at most an interval too much: a lost disk loses
        what was written since. Before the first snapshot is there, it is since the backup was turned on.
        """
        if self._has_all():
            return 0.0
        return max(0.0, clock.now().timestamp() - (self._reached_at or self._since))

    @property
    def fails(self) -> bool:
        """Return whether it doesn't go on, or a part of the history was lost a while ago."""
        return bool(self._error)

    @property
    def pending(self) -> int:
        """Return the bytes that wait on the node's disk."""
        return self._pending

    # The two loops

    async def run(self) -> None:
        """Ship and upload until cancelled."""
        while True:
            if self.interval:
                await self._work_until_off()
            await self._clear_away()
            while not self.interval:
                self._changed.clear()
                await self._changed.wait()

    async def _work_until_off(self) -> None:
        async with asyncio.TaskGroup() as group:
            works = [group.create_task(self._ship_each_interval()), group.create_task(self._upload_each())]
            while self.interval:
                self._changed.clear()
                await self._changed.wait()
            for work in works:
                work.cancel()

    async def _ship_each_interval(self) -> None:
        if not await asyncio.to_thread(self._recall):
            await clock.sleep(min(SPREAD, self.interval) * self._jitter())
        self._something.set()
        while True:
            began = clock.monotonic()
            self._look.clear()
            self._begun += 1
            try:
                await self._ship_what_is_new()
                self._looked = self._begun
            except (NotShipped, OSError) as error:
                self._note_not_shipped(str(error))
            left = self.interval - (clock.monotonic() - began)
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(max(0.0, left)):
                    await self._look.wait()

    def _recall(self) -> bool:
        """Recall how far the store has come; return whether there is a history. It reads the disk."""
        try:
            history = self._files.lineage()
            if history is not None and (reached := self._files.reached(history.lineage)) is not None:
                self._reached, self._reached_at = (history.lineage, reached.last), reached.at_ms / 1000
        except OSError as error:
            log.error("how far the backup has come can't be read: %s", error)
            return False
        return history is not None

    async def _ship_what_is_new(self) -> None:
        """Have files made of what was committed since the last ones, if anything was. Raises: NotShipped; OSError."""
        afresh = self._afresh and clock.monotonic() >= self._afresh_from
        stamp = self._stamp_now()
        if stamp is not None and stamp == self._stamp and not afresh:
            return
        shipped = await self._checkpoints.ship(afresh=afresh)
        if self._not_shipped:
            self._not_shipped = ""
            log.info("the files of the backup are made again")
        if shipped.error:
            self._remember(shipped.error)
        self._stamp, self._shipped, self._pending = stamp if shipped.whole else None, shipped, shipped.pending
        if afresh:
            # Those before were put already, or never can be.
            await asyncio.to_thread(self._drop_others, shipped.lineage)
            self._afresh, self._afresh_from = False, clock.monotonic() + AFRESH_EVERY
            if self._node and self._kept.node != self._node:
                self._kept = BackupSetting(self.interval, self._node)
                await self._keep()
        self._something.set()

    async def _upload_each(self) -> None:
        failures = 0
        while True:
            await self._something.wait()
            self._something.clear()
            put = self.uploads
            try:
                await self._upload_what_waits()
                failures = 0
                self._note_put()
            except (CodedError, _Waits, OSError) as error:
                failures = failures + 1 if self.uploads == put else 1
                self._note_not_put(error)
                retry_after = error.retry_after if isinstance(error, ControlRefused) else None
                self._something.set()
                await clock.sleep(upload_rules.pause(failures, self._jitter(), retry_after))

    # Uploads

    async def _upload_what_waits(self) -> None:
        """Put all that waits. Raises: CodedError; _Waits; OSError, when a file can't be read."""
        while not self._afresh:
            shipped = self._shipped
            waiting = await asyncio.to_thread(self._files.waiting)
            self._pending = sum(file.size for file in waiting)
            if shipped is not None:
                # What checkpoints have shipped since is merged with the next shipment.
                waiting = [file for file in waiting if file.lineage != shipped.lineage or file.last <= shipped.last]
            if not waiting:
                if shipped is not None and shipped.whole:
                    self._reached, self._reached_at = (shipped.lineage, shipped.last), shipped.at_ms / 1000
                return
            for at, file in enumerate(waiting):
                coming = [each for each in waiting[at : at + wire.MOST_UPLOADS] if each.lineage == file.lineage]
                try:
                    measured = await self._upload(file, coming)
                except _Missing:
                    break
                except _Ended as ended:
                    await self._give_up(file.lineage, str(ended))
                    break
                self._note_put()
                faults.reach("edge.upload.after")
                await asyncio.to_thread(self._files.uploaded, file)
                self.uploads += 1
                self._pending = max(0, self._pending - file.size)
                self._reached, self._reached_at = (file.lineage, file.last), measured.at

    async def _upload(self, file: WaitingFile, coming: list[WaitingFile]) -> Measured:
        """Put a file; `coming` are it and those after it. Raises: _Missing, _Ended, CodedError, OSError."""
        measured = await self._measure(file)
        if measured.size > upload_rules.MOST_BYTES:
            raise _Waits(upload_rules.too_large(name_of(file), measured.size))
        client = await self._session()
        if self._doubtful and await self._is_there(client, file, measured):
            return measured
        place = await self._place(client, file, coming)
        self._doubtful = True
        faults.reach("edge.upload.before")
        try:
            await self._send(client, place.url, file, measured)
        except ControlRefused as refused:
            # A server's error says nothing of what became of the file.
            self._doubtful = refused.status >= 500
            match upload_rules.meaning(refused.status, refused.code):
                case Outcome.THERE:
                    if not await self._is_there(client, file, measured):
                        raise
                case Outcome.ENDED:
                    raise _Ended(refused.message) from None
                case Outcome.NO_PLACE:
                    self._places.clear()
                    raise
                case Outcome.LATER:
                    raise
        self._doubtful = False
        self._places.pop((file.lineage, name_of(file)), None)
        return measured

    async def _measure(self, file: WaitingFile) -> Measured:
        """Read a file once, for its MD5. Raises: _Missing, _Ended, OSError."""

        def measure() -> Measured:
            with file.path.open("rb") as opened:
                header = ltx.read_header(opened)
                opened.seek(0)
                md5 = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False))
                return Measured(os.fstat(opened.fileno()).st_size, md5.digest(), header.at_ms / 1000)

        if self._measured is None or self._measured[0] != file.path:
            try:
                self._measured = file.path, await asyncio.to_thread(measure)
            except FileNotFoundError:
                raise _Missing from None
            except ltx.LtxError as error:
                raise _Ended(f"{file.path} on this node's disk is damaged: {error}") from None
        return self._measured[1]

    async def _session(self) -> ControlClient:
        """Return the session to control, as soon as there is one."""
        while self._client is None or self._client.closed:
            self._joined.clear()
            await self._joined.wait()
        return self._client

    async def _place(self, client: ControlClient, file: WaitingFile, coming: list[WaitingFile]) -> UploadPlace:
        """Return where to put a file, and ask control for it if that isn't known. Raises: _Ended, CodedError."""
        found = self._places.get((file.lineage, name_of(file)))
        if found is not None and clock.monotonic() < found.until:
            return found
        goes_on = self._shipped is not None and self._shipped.lineage == file.lineage
        names = upload_rules.names_to_ask(coming, self.interval if goes_on else 0.0, self._life)
        asked = clock.monotonic()
        try:
            given = await client.backup_places(file.lineage, names)
        except ControlRefused as refused:
            if upload_rules.meaning(refused.status, refused.code) is Outcome.ENDED:
                raise _Ended(refused.message) from None
            raise
        self._life = given.seconds
        until = upload_rules.valid_until(asked, given.seconds)
        places = [UploadPlace(url, until) for url in given.urls]
        self._places = {key: place for key, place in self._places.items() if asked < place.until}
        self._places |= {(file.lineage, name): place for name, place in zip(names, places, strict=True)}
        return places[0]

    async def _send(self, client: ControlClient, url: str, file: WaitingFile, measured: Measured) -> None:
        """Send a file. Raises: _Missing, CodedError, OSError."""
        loop, unread = asyncio.get_running_loop(), list[OSError]()

        async def pieces(limit: asyncio.Timeout) -> AsyncIterator[bytes]:
            try:
                with await asyncio.to_thread(file.path.open, "rb") as opened:
                    while piece := await asyncio.to_thread(opened.read, self._piece):
                        await self._afford(len(piece))
                        limit.reschedule(loop.time() + STALL)
                        yield piece
            except OSError as error:
                unread.append(error)
                raise
            # The answer has a limit of its own.
            limit.reschedule(None)

        try:
            async with asyncio.timeout(STALL) as limit:
                wait = upload_rules.answer_limit(measured.size, ANSWER_TIMEOUT)
                await client.put_backup(url, pieces(limit), measured.size, measured.md5, wait)
        except TimeoutError:
            raise NoAnswer("timed_out", f"nothing of {name_of(file)} was taken for {STALL:g} s") from None
        except NoAnswer:
            if not unread:
                raise
            if isinstance(unread[0], FileNotFoundError):
                raise _Missing from None
            raise unread[0] from None

    async def _afford(self, count: int) -> None:
        """Wait until so many bytes may be sent."""
        if self._bucket is not None:
            while not self._bucket.take(count, clock.monotonic()):
                await clock.sleep(self._bucket.wait(count, clock.monotonic()))

    async def _is_there(self, client: ControlClient, file: WaitingFile, measured: Measured) -> bool:
        """Return whether the store has this file. Raises: _Ended, when it has another one with its name; CodedError."""
        found = await client.backed_up(file.lineage, name_of(file))
        if found is None:
            return False
        match upload_rules.comparison(measured.size, measured.md5.hex(), found):
            case Comparison.SAME:
                return True
            case Comparison.UNKNOWN:
                why = "whose digest it doesn't say: nobody knows whether that is this node's"
            case Comparison.OTHER:
                why = (
                    "which isn't this node's: is there a copy of this disk that runs (a clone of the machine, a "
                    "snapshot that was brought back), or does somebody else write into the bucket?"
                )
        raise _Ended(f"the store has a file {name_of(file)} in the history {file.lineage} of this node's backup, {why}")

    async def _give_up(self, lineage: str, why: str) -> None:
        """Have another history begun in the place of the present one; drop the files of an earlier one."""
        history = await asyncio.to_thread(self._files.lineage)
        if history is None or history.lineage != lineage:
            log.warning("what waits of the history %s is dropped: %s", lineage, why)
            await asyncio.to_thread(self._files.drop, lineage)
            return
        text = f"the history {lineage} was given up, and another one begins with a snapshot: {why}"
        log.error("the node's backup: %s", text)
        self._remember(text)
        self._afresh = True
        self._look.set()

    def _remember(self, lost: str) -> None:
        """Tell for a while that a part of the history was lost: perhaps nobody looks at this moment."""
        if lost != self._lost:
            self.tell_soon()
        self._lost, self._lost_until = lost, clock.monotonic() + TOLD

    # What is known

    @property
    def _error(self) -> str:
        lost = self._lost if clock.monotonic() < self._lost_until else ""
        return upload_rules.told(lost, self._not_shipped, self._not_put)

    def _stamp_now(self) -> bytes | None:
        """Return what the log's index says now; None if it can't be read."""
        try:
            return wal.stamp(self._database)
        except OSError as error:
            log.error("the write-ahead log's index can't be read: %s", error)
            return None

    def _has_all(self) -> bool:
        """Return whether the store has everything, and note that it had until now."""
        shipped = self._shipped
        if shipped is None or not shipped.whole or (shipped.lineage, shipped.last) != self._reached:
            return False
        if (stamp := self._stamp_now()) is None or stamp != self._stamp:
            return False
        self._reached_at = clock.now().timestamp()
        return True

    def _note_not_shipped(self, why: str) -> None:
        self.failures += 1
        if why != self._not_shipped:
            self._not_shipped = why
            log.error("the files of the backup can't be made: %s", why)
            self.tell_soon()

    def _note_not_put(self, error: CodedError | _Waits | OSError) -> None:
        self.failures += 1
        why = f"a file of the backup can't be read: {error}" if isinstance(error, OSError) else str(error)
        if why != self._not_put:
            self._not_put = why
            log.warning("the files of the backup don't get to the store: %s", why)

    def _note_put(self) -> None:
        if self._not_put:
            self._not_put = ""
            log.info("the files of the backup get to the store again")

    # The disk

    async def _keep(self) -> None:
        """Remember over a restart whether there is a backup."""
        path = self._state / FILE
        try:
            if self.interval:
                await asyncio.to_thread(files.write, path, msgspec.json.encode(self._kept))
            else:
                await asyncio.to_thread(files.remove, path)
        except OSError as error:
            log.error("%s can't be written (%s): after a restart, control has to say it again", path, error)

    def _drop_others(self, lineage: str) -> None:
        """Drop what waits of all histories but this one. It reads the disk: call it in a thread."""
        for other in {file.lineage for file in self._files.waiting()} - {lineage}:
            self._files.drop(other)

    async def _clear_away(self) -> None:
        """Drop what waits, and have nothing kept back for it."""
        try:
            await self._checkpoints.end_backup()
        except OSError as error:
            log.error("what the backup has left on the disk can't be removed: %s", error)
        self._stamp = self._shipped = self._measured = None
        self._reached, self._reached_at, self._pending = ("", 0), 0.0, 0
        self._places.clear()
        self._afresh = False
        self._not_shipped = self._not_put = ""


def _read(path: Path) -> BackupSetting:
    """Return whether there is a backup."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=BackupSetting)
    except FileNotFoundError:
        return BackupSetting(0.0, "")
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.error("%s can't be read (%s): control says again whether there is a backup", path, error)
        return BackupSetting(0.0, "")
