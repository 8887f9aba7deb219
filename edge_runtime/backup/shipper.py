"""Puts what was committed to the libsql file into LTX files, in the checkpointer's process.

The invariant: a connection always holds a read transaction that is no younger than what has been shipped. So no
checkpoint, whoever makes it, moves a frame that isn't shipped, and the log can begin anew only from a moment at which
all of it was: at most once between two shipments, and then its first salt is one more. Frames are read up to the
index's committed end only, so nothing that was never committed is shipped.

A snapshot takes a while, and the log must be able to begin anew meanwhile. Then the pages that it has read are of
several moments, and what was written since, shipped into files that nobody counts, makes them those of one.

After a process that was killed, the log must still have the frames that were shipped last, or have followed them while
the database file stayed as it was. Otherwise something may be missing: the history is broken, and goes on with a
snapshot under a number of its own, so that no restore goes across what is missing.
"""

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import apsw
import msgspec

from control.protocol import faults, ltx
from edge_runtime import files, wal
from edge_runtime.backup.local_files import SHIPMENTS, SNAPSHOTS, History, LocalFiles, WaitingFile, identity
from edge_runtime.disk_space import DISK_RESERVE
from edge_runtime.ipc import frames
from edge_runtime.sql.current_sqlite import CheckpointMode, FileAndLog
from edge_runtime.wal import LogState

MOST_FILES: Final = 1000
"""Shipments that may wait; more are merged."""
MERGED_AT_ONCE: Final = 64
"""Files that one merge reads."""
MOST_GATHERED: Final = 32 * 1024 * 1024
"""Bytes of files that are merged before each upload: more aren't worth the time."""
MOST_ENDS: Final = 100
"""Boundaries that merging leaves as they are: those of so many releases."""
MOST_KEPT: Final = 4096
"""Pages that are kept in memory while writers wait, instead of being put on disk there."""
GROWTH: Final = 4
"""While a snapshot is made the log begins anew once it has grown by its limit divided by this; the snapshot is given up
at twice that, where readers keep the log from it."""
TRIES: Final = 8
"""Attempts between the two."""
AGAIN: Final = 10.0
AGAIN_CAP: Final = 600.0
"""Seconds until a snapshot that failed is tried again: the first pause, which doubles each time up to the cap."""
_LOCK: Final = "lock"
_LOCK_PAUSE: Final = 0.02
_FRAME: Final = struct.Struct(">II8s8s")
"""Page, the database's pages if it ends a transaction, the log's salts, and the checksum up to the frame."""
_BEGINNINGS: Final = slice(12, 16)
"""Where the log's header says how often it has begun anew."""
_READ_FRAMES: Final = 256
"""Frames that are read at once."""
_LOOK_PAGES: Final = 1024
"""Pages of a snapshot between two looks at the log's length."""
_SINCE: Final = ".since"
"""Suffix of files with what was written while a snapshot is made, which belong to none yet."""
_BUFFER: Final = 256 * 1024


class Broken(Exception):
    """Something was committed that can't be shipped any more, or must not be now; the message says why."""


class Exchanged(OSError):
    """Another file has taken the place of the database: only another process may go on with that."""


class _Place(NamedTuple):
    """How far the log has been read."""

    salt: bytes
    frames: int
    checksum: bytes
    """Of the last frame; empty without frames, or if it isn't known."""


class _Making:
    """A snapshot that is being made."""

    def __init__(self, shorten: Callable[[], None], frames: int, growth: int) -> None:
        self.shorten = shorten
        """Moves the log, and lets it begin anew if that is possible."""
        self.large: list[Path] = []
        """Files with what was written since the first page was read, in order: many that were merged each."""
        self.small: list[Path] = []
        """Those after them."""
        self.growth = growth
        """By how many frames the log may grow."""
        self.due = frames + growth
        """Frames of the log at which it is to begin anew, and at which the snapshot is given up."""
        self.most = frames + 2 * growth

    def take_since(self) -> list[Path]:
        """Return all files with what was written since, which this one has no more."""
        taken, self.large, self.small = self.large + self.small, [], []
        return taken


class Shipper:
    """Ships the database of a state directory; there is one at a time. Methods raise apsw.Error and OSError: what was
    shipped before stays so, and the read transaction stays held."""

    def __init__(self, state: Path, limit: int, log_limit: int, patience: float) -> None:
        """`limit`: bytes that waiting files may take; `log_limit`: that of the log; `patience`: seconds to wait for
        locks, also for that of a shipper before, which is about to exit."""
        self._local = LocalFiles(state)
        self._database = state / wal.FILE
        self._inode = self._database.stat().st_ino
        self._limit = limit
        self._log_limit = log_limit
        self._guard = _locked(self._local.folder / _LOCK, patience)
        # While one holds a transaction, the other begins the next.
        self._readers = [FileAndLog(self._database, patience) for _ in range(2)]
        self._held: FileAndLog | None = None
        self._log = -1
        self._history: History | None = None
        """What is on disk; None if that isn't known."""
        self._place: _Place | None = None
        """None if it isn't known."""
        self._ordered: tuple[str, int] | None = None
        """Lineage and transaction up to which the last order shipped; None before the first."""
        self._kept: dict[int, bytes] = {}
        """Pages that are shipped as far as the log goes, and not yet in a file."""
        self._kept_pages = 0
        """The database's pages after them."""
        self._making: _Making | None = None
        self._failures = 0
        self._not_before = 0.0

    def ship(self, order: frames.Ship, shorten: Callable[[], None]) -> frames.Shipped:
        """Put what was committed into files, as a snapshot where nothing else can follow what was shipped before.

        `shorten` is called now and then while that takes long: it moves the log by means of the methods below.
        """
        history = self._current(order.afresh)
        at_ms, whole = _now_ms(), True
        if not history.broken:
            try:
                history = self._ship(boundary=order.boundary)
            except Broken as broken:
                history = self._break(str(broken))
        if history.broken:
            at_ms, whole = history.at_ms, False
            # Where files wait the store is away, and one snapshot once it is back is enough.
            waits = any(one.lineage == history.lineage for one in self._local.waiting())
            if not order.boundary and not waits and time.monotonic() >= self._not_before:
                at_ms, history = _now_ms(), self._snapshot(history, shorten)
                whole = not history.broken
        if whole and not order.boundary:
            self._merge_since_last_order(history)
        self._ordered = history.lineage, history.last
        waiting = self._local.waiting()
        if whole and history.error and not any(one.level == SNAPSHOTS for one in waiting):
            history = self._count(msgspec.structs.replace(history, error=""))
        pending = sum(one.size for one in waiting)
        error = history.error[: frames.FAILURE_TEXT]
        return frames.Shipped(history.lineage, history.last, at_ms, pending, error, whole)

    def before_checkpoint(self, *, unshipped: bool) -> bool:
        """Ship before a checkpoint, which moves only what is shipped; return whether the checkpoint's last step is to
        be made with `last_step`.

        If that fails and `unshipped` is set, the history is given up instead.
        """
        try:
            if self._current(afresh=False).broken:
                return False
            self._ship()
        except Broken as broken:
            self._break(str(broken))
        except Exchanged:
            raise
        except (apsw.Error, OSError) as error:
            if not unshipped:
                raise
            # If that isn't on disk, the next shipment finds out what is missing.
            with contextlib.suppress(OSError):
                self._break(f"the disk failed: {error}")
        return self._held is not None

    def last_step(self, opened: FileAndLog, mode: CheckpointMode) -> bool:
        """Move the rest and let the log begin anew, while the caller holds the writer lock; return whether somebody is
        in the way. `after_last_step` must follow once the lock is released.

        What was written since `before_checkpoint` is kept in memory: if the process is killed before
        `after_last_step`, a snapshot follows.
        """
        faults.reach("edge.backup.step.locked")
        try:
            self._keep()
            if self._kept and self._history is not None and self._history.moved:
                # From here on the file has more than that, which its time doesn't show on disk yet.
                self._count(msgspec.structs.replace(self._history, moved=[]))
            opened.checkpoint("full")
            faults.reach("edge.backup.step.moved")
            # What is held then is of the file: it is in the way of further moves, but not of a log that begins anew.
            self._keep()
        except Broken as broken:
            self._break(str(broken))
            return opened.checkpoint(mode) is None
        log = wal.state(self._database)
        if log.moved < log.frames or opened.checkpoint(mode) is None:
            return True
        faults.reach("edge.backup.step.anew")
        # A log that was emptied may get any salts.
        if self._place is not None and not (log := wal.state(self._database)).frames:
            self._place = _Place(log.salt, 0, b"")
        return False

    def after_last_step(self, *, busy: bool) -> None:
        """Put on disk what was kept in memory, and if nobody was `busy`, that all of the log is in the file."""
        if self._held is None:
            return
        faults.reach("edge.backup.step.unlocked")
        try:
            self._ship(moved=not busy)
        except Broken as broken:
            self._break(str(broken))

    def close(self) -> None:
        """Close the connections, and let another process ship."""
        self._let_go()
        for reader in self._readers:
            reader.close()
        if self._log >= 0:
            os.close(self._log)
        os.close(self._guard)

    def _current(self, afresh: bool) -> History:
        """Return the history of the database, which begins now if there is none or `afresh` is set."""
        inode = self._database.stat().st_ino
        if inode != self._inode:
            raise Exchanged(errno.ESTALE, "another file has taken the place of the database", str(self._database))
        history = self._history
        if history is None:
            self._place = None
            self._kept.clear()
            history = self._local.lineage()
            if history is not None:
                self._local.clean(history)
        if history is None or history.inode != inode or afresh:
            self._let_go()
            self._place = None
            self._kept.clear()
            self._not_before = 0.0
            if history is not None and afresh:
                self._local.drop(history.lineage)
            history = self._local.begin(inode)
        self._history = history
        return history

    def _ship(self, *, moved: bool = False, boundary: bool = False) -> History:
        """Put what was committed since the last time into a file. Raises: Broken."""
        history = self._history
        assert history is not None  # noqa: S101
        before = self._hold()
        try:
            # Before the log's end is read: a file has all that was committed by its time.
            now = _now_ms()
            log, place, found, pages = self._new_frames(history)
            numbers = sorted(number for number in {*found, *self._kept} if number <= pages)
            if moved and log.moved >= log.frames:
                # The transaction that was held before is one of the file: nothing is moved meanwhile.
                history = msgspec.structs.replace(history, moved=identity(self._database))
            elif place.frames != history.frames or place.salt.hex() != history.salt:
                history = msgspec.structs.replace(history, moved=[])
            history = msgspec.structs.replace(
                history, salt=place.salt.hex(), frames=place.frames, checksum=place.checksum.hex()
            )
            if found or self._kept:
                history = msgspec.structs.replace(history, last=history.last + 1, at_ms=now)
                path, room = self._next_file(history)
                header = ltx.Header(log.page_bytes, pages, history.last, history.last, now)

                def contents() -> Iterator[tuple[int, bytes]]:
                    for number in numbers:
                        yield number, self._page(found[number], log) if number in found else self._kept[number]

                self._write(path, room, lambda file: ltx.write(file, header, contents()))
                if self._making is not None:
                    self._making.small.append(path)
            if boundary and history.last not in history.ends:
                history = msgspec.structs.replace(history, ends=[*history.ends[1 - MOST_ENDS :], history.last])
            if history != self._history:
                self._count(history)
            self._place = place
            self._kept.clear()
        except BaseException:
            self._fall_back(before)
            raise
        _end(before)
        return history

    def _keep(self) -> None:
        """Read what was committed since the last time into memory, or put it into a file if it is much.

        Raises: Broken.
        """
        history = self._history
        assert history is not None  # noqa: S101
        before = self._hold()
        try:
            log, place, found, pages = self._new_frames(history)
            many = len(found) + len(self._kept) > MOST_KEPT
            if not many:
                self._kept.update((number, self._page(at, log)) for number, at in found.items())
                self._kept_pages = pages
                self._place = place
        except BaseException:
            self._fall_back(before)
            raise
        if many:
            self._fall_back(before)
            self._ship()
        else:
            _end(before)

    def _new_frames(self, history: History) -> tuple[LogState, _Place, dict[int, int], int]:
        """Return the log, how far it goes, where the last version of each page is that was written since the last time,
        and the database's pages then. Raises: Broken."""
        log = wal.state(self._database)
        place = self._place
        if place is None:
            place = self._taken_up(history, log)
        place = _followed(place, log)
        if log.frames == place.frames:
            return log, place, {}, self._kept_pages
        found, checksum, pages = self._last_versions(place.frames, log)
        return log, _Place(log.salt, log.frames, checksum), found, pages

    def _taken_up(self, history: History, log: LogState) -> _Place:
        """Return the place up to which a process of before has shipped. Raises: Broken, when something may have been
        lost since."""
        place = _Place(bytes.fromhex(history.salt), history.frames, bytes.fromhex(history.checksum))
        if place.salt == log.salt:
            if not place.frames:
                return place
            # The checksum is one of all frames before: these are those that were shipped.
            if place.frames <= log.frames and self._checksum(place.frames, log) == place.checksum != b"":
                return place
        elif (
            history.moved
            and history.moved == identity(self._database)
            # A loss of power may take a stranger's later time from the file: after an emptied log this is the first.
            and (place.frames or not log.frames or self._is_first())
        ):
            # All of that log is in the file, and nothing else was moved since: this log followed it.
            return _followed(place, log)
        raise Broken("the database was written, or restored, while nothing shipped it")

    def _snapshot(self, history: History, shorten: Callable[[], None]) -> History:
        """Write all pages under a number of its own; nothing keeps writers waiting for long."""
        self._let_go()
        self._kept.clear()
        self._place = None
        folder = self._local.level(history.lineage, SNAPSHOTS)
        begun = folder / f"{ltx.name(1, history.last + 1)}.part"
        self._hold()
        try:
            now = _now_ms()
            log = wal.state(self._database)
            checksum = self._checksum(log.frames, log) if log.frames else b""
            pages = log.pages or self._database.stat().st_size // max(1, log.page_bytes)
            if not pages:
                raise Broken("the database is empty")
            # Where all is moved, what is held is of the file, and the log may begin anew at any time.
            moved = [] if log.moved < log.frames else identity(self._database)
            growth = self._log_limit // GROWTH // log.page_bytes
            self._making = making = _Making(shorten, log.frames, growth)
            self._place = _Place(log.salt, log.frames, checksum)
            self._history = msgspec.structs.replace(
                history,
                last=history.last + 1,
                at_ms=now,
                broken=False,
                salt=log.salt.hex(),
                frames=log.frames,
                checksum=checksum.hex(),
                moved=moved,
            )
            header = ltx.Header(log.page_bytes, pages, 1, self._history.last, now)
            contents = self._all_pages(pages, log)
            faults.reach("edge.backup.write")
            self._fill(begun, self._left(), lambda file: ltx.write(file, header, contents))
            if making.large or making.small:
                last = self._ship().last
                self._join_parts([begun, *making.take_since()], folder / ltx.name(1, last))
                self._make_shipments(making.take_since())
            else:
                self._put(begun, folder / ltx.name(1, self._history.last))
            self._making = None
            after = self._count(self._history)
        except BaseException as error:
            if self._making is not None:
                # Else it is unknown whether it counts.
                self._making, self._history = None, history
            for path in folder.glob(f"*{_SINCE}"):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                begun.unlink(missing_ok=True)
            self._let_go()
            self._failures += 1
            self._not_before = time.monotonic() + min(AGAIN_CAP, AGAIN * 2.0 ** min(self._failures - 1, 10))
            if isinstance(error, Broken | apsw.Error | OSError):
                return self._break(str(error))
            raise
        self._failures = 0
        return after

    def _all_pages(self, pages: int, log: LogState) -> Iterator[tuple[int, bytes]]:
        """Yield the content of each page, now or later; `_look` is why later. Raises: Broken."""
        lock_page = ltx.lock_page(log.page_bytes)
        # SQLite has locks on the file, which closing a descriptor would release.
        file = wal.keep(self._database)
        found = self._in_log(log)
        for number in range(1, pages + 1):
            if number % _LOOK_PAGES == 0 and self._look():
                log = wal.state(self._database)
                found = self._in_log(log)
            if number in found:
                yield number, self._page(found[number], log)
            elif number != lock_page:
                # A file that ends before has free pages there.
                yield number, os.pread(file, log.page_bytes, (number - 1) * log.page_bytes).ljust(log.page_bytes, b"\0")

    def _in_log(self, log: LogState) -> dict[int, int]:
        """Return where the last versions are of pages that aren't moved, all of them where some aren't."""
        return self._last_versions(0, log)[0] if log.moved < log.frames else {}

    def _look(self) -> bool:
        """Have the log begin anew if it has grown much while a snapshot is made; return whether that was tried.

        Raises: Broken, when it gets too long.
        """
        making = self._making
        assert making is not None  # noqa: S101
        before = wal.state(self._database)
        if before.frames <= making.due or before.moved >= before.frames:
            return False
        making.shorten()
        if len(making.small) >= MERGED_AT_ONCE:
            merged, making.small = making.small, []
            spans = [ltx.transactions(path.name.removesuffix(_SINCE)) or (0, 0) for path in (merged[0], merged[-1])]
            making.large.append(merged[0].with_name(f"{ltx.name(spans[0][0], spans[1][1])}{_SINCE}"))
            self._join_parts(merged, making.large[-1])
        log = wal.state(self._database)
        if log.salt != before.salt or log.moved >= log.frames:
            making.due, making.most = making.growth, 2 * making.growth
        elif log.frames > making.most:
            raise Broken("calls read all the time, and the write-ahead log gets too long: it is tried again")
        else:
            making.due = log.frames + making.growth // TRIES
        return True

    def _next_file(self, history: History) -> tuple[Path, int]:
        """Return where the next shipment is put, and how many bytes it may have. Raises: Broken."""
        name = ltx.name(history.last, history.last)
        if self._making is None:
            return self._local.level(history.lineage, SHIPMENTS) / name, self._make_room(history)
        return self._local.level(history.lineage, SNAPSHOTS) / f"{name}{_SINCE}", self._left()

    def _left(self) -> int:
        """Return how many bytes files may take beside those that wait and those of a snapshot that is being made."""
        waiting = sum(one.size for one in self._local.waiting())
        made = [] if self._making is None else self._making.large + self._making.small
        return self._limit - waiting - sum(path.stat().st_size for path in made if path.exists())

    def _join_parts(self, parts: list[Path], path: Path) -> None:
        """Put one file in the place of parts of a snapshot that follow each other. Raises: Broken."""
        room = self._left() - sum(part.stat().st_size for part in parts)
        self._join(parts, path, room, self._look)
        for part in parts:
            part.unlink()

    def _make_shipments(self, since: list[Path]) -> None:
        """Make shipments of files with what was written after a snapshot that is there now."""
        for path in since:
            place = self._local.level(path.parents[1].name, SHIPMENTS)
            path.replace(place / path.name.removesuffix(_SINCE))
            files.sync_folder(place)

    def _make_room(self, history: History) -> int:
        """Merge shipments that wait if they take half of the room, or are too many; return the bytes that are left.

        Raises: Broken, when that isn't enough.
        """
        waiting = self._local.waiting()
        shipments = [one for one in waiting if one.lineage == history.lineage and one.level == SHIPMENTS]
        size = sum(one.size for one in shipments)
        left = self._limit - sum(one.size for one in waiting)
        # The other half is for merging.
        half = (left + size) // 2
        if size <= half and len(shipments) <= MOST_FILES:
            return left
        merged = 0
        try:
            for part in _parts(shipments, history.ends):
                merged += self._merge_all(part, left)
        except FileNotFoundError:
            # One has come to the store meanwhile: there will be room.
            return left
        if merged > half * 3 // 4:
            raise Broken("the files that wait for the store have reached SKERRY_EDGE_BACKUP_LIMIT")
        return left + size - merged

    def _merge_since_last_order(self, history: History) -> None:
        """Merge what checkpoints have shipped since the last order with what this one has: one upload is cheaper, and
        most of the pages are the same."""
        if self._ordered is None or self._ordered[0] != history.lineage:
            return
        after = self._ordered[1]
        since = [one for one in self._local.waiting() if one.lineage == history.lineage and one.first > after]
        size, left = sum(one.size for one in since), self._left()
        if any(one.level == SNAPSHOTS for one in since) or size > min(MOST_GATHERED, left // 2):
            return
        for part in _parts(since, history.ends):
            # Where that fails, they go to the store one by one.
            with contextlib.suppress(OSError, Broken):
                self._merge_all(part, left)

    def _merge_all(self, part: list[WaitingFile], room: int) -> int:
        """Put one file in the place of files that follow each other, each time of at most `room` bytes; return the
        bytes of what there is then."""
        while len(part) > 1:
            part[:MERGED_AT_ONCE] = [self._merge(part[:MERGED_AT_ONCE], room)]
        return sum(one.size for one in part)

    def _merge(self, merged: list[WaitingFile], room: int) -> WaitingFile:
        """Put one file of at most `room` bytes in the place of files that follow each other."""
        first, last = merged[0].first, merged[-1].last
        path = merged[0].path.with_name(ltx.name(first, last))
        self._join([one.path for one in merged], path, room)
        faults.reach("edge.backup.merged")
        for one in merged:
            one.path.unlink(missing_ok=True)
        return WaitingFile(path, SHIPMENTS, first, last, path.stat().st_size)

    def _join(self, parts: list[Path], path: Path, room: int, look: Callable[[], object] = lambda: None) -> None:
        """Write one file of at most `room` bytes with what files have that follow each other."""
        try:
            with ExitStack() as stack:
                readers = [ltx.Reader(stack.enter_context(part.open("rb", _BUFFER))) for part in parts]
                self._write(path, room, lambda file: ltx.merge(readers, file), look)
        except ltx.LtxError as error:
            raise OSError(errno.EIO, f"files of the backup are damaged: {error}", str(path)) from None

    def _write(
        self,
        path: Path,
        room: int,
        make: Callable[[BinaryIO], object],
        look: Callable[[], object] = lambda: None,
    ) -> None:
        """Write a file of at most `room` bytes, which appears whole, and isn't counted yet; `look` is called now and
        then. Nothing is left of one that fails. Raises: Broken, when it doesn't fit."""
        part = path.with_name(f"{path.name}.part")
        faults.reach("edge.backup.write")
        try:
            self._fill(part, room, make, look)
            self._put(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise

    def _fill(
        self,
        part: Path,
        room: int,
        make: Callable[[BinaryIO], object],
        look: Callable[[], object] = lambda: None,
    ) -> None:
        with part.open("wb", _BUFFER) as file:
            free = files.free_bytes(part.parent) - DISK_RESERVE
            make(cast(BinaryIO, _Bounded(file, room, free, look)))
            file.flush()
            faults.reach("edge.backup.sync")
            os.fsync(file.fileno())

    def _put(self, part: Path, path: Path) -> None:
        """Give a whole file its name."""
        faults.reach("edge.backup.rename")
        part.replace(path)
        files.sync_folder(path.parent)
        faults.reach("edge.backup.count")

    def _count(self, history: History) -> History:
        """Write how far the history has come; if that fails, the disk knows how far that is."""
        if self._making is not None:
            # Nothing of it counts before the snapshot does.
            self._history = history
            return history
        self._history = None
        self._local.write(history)
        self._history = history
        faults.reach("edge.backup.counted")
        return history

    def _break(self, why: str) -> History:
        """Note that a snapshot must follow: nothing is held until then. Raises: Broken, while one is being made."""
        if self._making is not None:
            raise Broken(why)
        history = self._history or self._local.lineage()
        self._let_go()
        self._place = None
        self._kept.clear()
        if history is None:
            raise OSError(errno.EIO, "how far the backup has come can't be read", str(self._local.folder))
        what = f"what was written after transaction {history.last} isn't" if history.last else "nothing is"
        error = f"{what} in the backup until a snapshot follows: {why}"
        history = msgspec.structs.replace(history, broken=True, moved=[], error=error)
        # If it isn't on disk, the next process finds it out by itself.
        with contextlib.suppress(OSError):
            self._local.write(history)
        self._history = history
        return history

    def _hold(self) -> FileAndLog | None:
        """Begin a read transaction of now; return what holds the one before."""
        before = self._held
        other = self._readers[self._readers[0] is before]
        other.begin_reading()
        self._held = other
        return before

    def _fall_back(self, before: FileAndLog | None) -> None:
        """Hold the transaction of before again, which is that of what was shipped."""
        if before is not self._held:
            _end(self._held)
            self._held = before

    def _let_go(self) -> None:
        """End the transaction that is held."""
        _end(self._held)
        self._held = None

    def _open_log(self) -> int:
        info = wal.log_of(self._database).stat()
        if self._log < 0 or (found := os.fstat(self._log)).st_ino != info.st_ino or found.st_dev != info.st_dev:
            if self._log >= 0:
                # SQLite locks no bytes of the log itself.
                os.close(self._log)
            self._log = os.open(wal.log_of(self._database), os.O_RDONLY | os.O_CLOEXEC)
        return self._log

    def _is_first(self) -> bool:
        """Return whether the log hasn't begun anew since its file was made or emptied."""
        header = os.pread(self._open_log(), wal.HEADER_BYTES, 0)
        return header[_BEGINNINGS] == bytes(4)

    def _page(self, at: int, log: LogState) -> bytes:
        data = os.pread(self._log, log.page_bytes, at)
        if len(data) < log.page_bytes:
            raise _short_log(self._database)
        return data

    def _checksum(self, number: int, log: LogState) -> bytes:
        """Return the checksum of a frame, counted from 1; empty if the log has begun anew there."""
        at = wal.HEADER_BYTES + (number - 1) * (wal.FRAME_HEADER_BYTES + log.page_bytes)
        data = os.pread(self._open_log(), _FRAME.size, at)
        if len(data) < _FRAME.size:
            return b""
        _, _, salt, checksum = _FRAME.unpack(data)
        return checksum if salt == log.salt else b""

    def _last_versions(self, after: int, log: LogState) -> tuple[dict[int, int], bytes, int]:
        """Return where the last version of each page is among the frames behind the first `after`, the checksum of the
        last frame, and the database's pages then."""
        opened = self._open_log()
        frame = wal.FRAME_HEADER_BYTES + log.page_bytes
        found: dict[int, int] = {}
        pages, checksum = 0, b""
        at, end = wal.HEADER_BYTES + after * frame, wal.HEADER_BYTES + log.frames * frame
        while at < end:
            data = os.pread(opened, min(end - at, _READ_FRAMES * frame), at)
            if len(data) < frame:
                raise _short_log(self._database)
            for start in range(0, len(data) - frame + 1, frame):
                number, commit, salt, checksum = _FRAME.unpack_from(data, start)
                if salt != log.salt:
                    raise OSError(errno.EIO, "a frame is of another log", str(wal.log_of(self._database)))
                found[number] = at + start + wal.FRAME_HEADER_BYTES
                pages = commit or pages
            at += len(data) // frame * frame
        return found, checksum, pages


class _Bounded:
    """A file that takes only so many bytes, and looks now and then."""

    def __init__(self, file: BinaryIO, room: int, free: int, look: Callable[[], object]) -> None:
        self._file = file
        self._room = room
        self._free = free
        self._look = look
        self._writes = 0

    def write(self, data: bytes) -> int:
        self._writes += 1
        if self._writes % _LOOK_PAGES == 0:
            self._look()
        self._room -= len(data)
        self._free -= len(data)
        if self._room < 0:
            raise Broken("a file doesn't fit beside those that wait for the store in SKERRY_EDGE_BACKUP_LIMIT")
        if self._free < 0:
            raise OSError(errno.ENOSPC, "the disk has no room for the backup's files beside its reserve")
        return self._file.write(data)


def _parts(shipments: list[WaitingFile], ends: list[int]) -> list[list[WaitingFile]]:
    """Return files that follow each other in groups, of which all but the last one end at one of these transactions."""
    groups: list[list[WaitingFile]] = [[]]
    for one in shipments:
        groups[-1].append(one)
        if one.last in ends:
            groups.append([])
    return groups


def _followed(place: _Place, log: LogState) -> _Place:
    """Return the place in the log of now, which may have begun anew since. Raises: Broken, when it did so more than
    once."""
    if log.salt == place.salt:
        if log.frames < place.frames:
            raise Broken("the write-ahead log is shorter than what was shipped of it")
        return place
    # A log without frames may get any salts.
    if place.frames and _first(log.salt) != (_first(place.salt) + 1) & 0xFFFF_FFFF:
        raise Broken("the write-ahead log began anew more than once")
    return _Place(log.salt, 0, b"")


def _first(salt: bytes) -> int:
    return int.from_bytes(salt[:4], "big")


def _end(reader: FileAndLog | None) -> None:
    if reader is not None and reader.is_reading:
        reader.end_reading()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _short_log(database: Path) -> OSError:
    return OSError(errno.EIO, "the write-ahead log is shorter than its index says", str(wal.log_of(database)))


def _locked(path: Path, patience: float) -> int:
    """Return a descriptor with the lock that only one shipper has. Raises: OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except (BlockingIOError, PermissionError):
            if time.monotonic() > until:
                os.close(descriptor)
                raise OSError(errno.EAGAIN, "another process ships the database", str(path)) from None
        time.sleep(_LOCK_PAUSE)
