"""Brings the node's database back when control asks for that: everything up to the exchange of the databases happens in
the background, while polls and calls go on.

There is one restore at a time, the newest. What came of the last one is kept on disk, so that control hears of it also
after a restart, and no restore is done twice.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from control.protocol import faults, wire
from edge_runtime import clock, files, wal
from edge_runtime.errors import CodedError, SyncFailed
from edge_runtime.ipc.frames import LocalFunction, Stored
from edge_runtime.ipc.restore_messages import PreparedDatabase, ReplacedDatabase
from edge_runtime.sync import backup_files, retries
from edge_runtime.sync.artifacts import Artifacts
from edge_runtime.sync.attempt import ArtifactCompiler, Runtime, text
from edge_runtime.sync.backup_files import RestoreFailed
from edge_runtime.sync.control_client import PAUSE, PAUSE_CAP, ControlClient, ControlRefused, NoAnswer, until_answered
from edge_runtime.sync.rehearsals import Rehearsals

log = logging.getLogger("skerry.agent")

FOLDER: Final = "restore"
"""The folder of a restore in the state directory, with a folder for its id; it is there only until it is over."""
SHOWN: Final = 2000
"""Characters of a message."""


class RestoreRecord(Struct):
    """What came of the last restore: `outbox/restore.json` in the state directory."""

    id: str
    """Empty if the database was brought back when the node joined again."""
    at: datetime
    """When the database was as it was brought back, by the node's clock of then."""
    ended_at: datetime
    result: wire.RestoreResult
    inode: int = 0
    """While it isn't known whether the exchange was made: that of the restored file."""

    @staticmethod
    def path(state: Path) -> Path:
        return state / "outbox" / "restore.json"

    def keep(self, state: Path) -> None:
        """Put it on disk in the place of an earlier one. Raises: OSError."""
        path = self.path(state)
        files.make_folder(path.parent)
        files.write(path, msgspec.json.encode(self))

    @classmethod
    def kept(cls, state: Path) -> "RestoreRecord | None":
        """Return what is on disk; None if there is nothing that can be read."""
        try:
            return msgspec.json.decode(cls.path(state).read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.error("%s can't be read: %s", cls.path(state), error)
            return None


class Restores:
    """The newest restore that control has asked for. `look_back` must come first."""

    def __init__(
        self,
        state: Path,
        runtime: Runtime,
        compiler: ArtifactCompiler,
        artifacts: Artifacts,
        rehearsals: Rehearsals,
        client: Callable[[], ControlClient],
    ) -> None:
        """`client` returns the present session to control."""
        self._state = state.absolute()
        self._runtime = runtime
        self._compiler = compiler
        self._artifacts = artifacts
        self._rehearsals = rehearsals
        self._client = client
        self.id = ""
        """The restore that was taken up last, for polls; empty if none was since the start."""
        self.keeps: set[str] = set()
        """sha256 of the artifacts of the release that is brought back."""
        self.replaced: set[str] | None = None
        """The same of the release that the node had before the last restore; None once the agent has taken it."""
        self._last: RestoreRecord | None = None
        self._untidy = True
        """Whether there may be files of an earlier process's restore."""
        self._task: asyncio.Task[None] | None = None
        self._step = ""
        self._trouble = ""
        """Why the files don't come."""
        self._since: datetime | None = None
        self._order: wire.RestoreOrder | None = None
        self._fetched = 0

    async def look_back(self) -> None:
        """Find out what became of the last restore."""
        self._last = await asyncio.to_thread(_settled, self._state)

    def begin(self, restore_id: str) -> None:
        """Take up a restore, unless it is going on. Another one that is going on is given up, if its exchange hasn't
        begun. Of one that has ended, control is told again how."""
        if restore_id == self.id and self._task is not None and not self._task.done():
            return
        if self._task is not None:
            self._task.cancel()
        self.id = restore_id
        self._task = asyncio.get_running_loop().create_task(self._run(self._task, restore_id))

    async def tidy(self) -> None:
        """Remove what an earlier process has left of a restore, unless one has been taken up: control wants none."""
        if self._untidy and self._task is None and (self._state / FOLDER).exists():
            await asyncio.to_thread(shutil.rmtree, self._state / FOLDER, ignore_errors=True)
        self._untidy = False

    async def end(self) -> None:
        """Give up the restore, and wait until nothing of it is left but its files."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def status(self) -> dict[str, Any] | None:
        """Return the part `restore` of the node's status: the one that is going on, else the last one; None if there
        was none."""
        if self._step:
            order = self._order
            return {
                "id": self.id,
                "step": self._step,
                "at": text(order.at) if order is not None else None,
                "bytes": sum(file.size for file in order.files) if order is not None else None,
                "fetched": self._fetched,
                "trouble": self._trouble or None,
                "started_at": text(self._since),
                "outcome": None,
            }
        if (last := self._last) is None:
            return None
        return {
            "id": last.id or None,
            "step": None,
            "at": text(last.at),
            "outcome": last.result.outcome,
            "code": last.result.code or None,
            "message": last.result.message or None,
            "release": last.result.release or None,
            "kept": last.result.kept or None,
            "ended_at": text(last.ended_at),
        }

    async def _run(self, before: asyncio.Task[None] | None, restore_id: str) -> None:
        """Bring the database back, and tell control how that went."""
        try:
            if before is not None:
                await asyncio.wait([before])
            if self._last is None or self._last.id != restore_id:
                self._step, self._since = "order", clock.now()
                self._last = await self._restore(restore_id) or self._last
            if (last := self._last) is not None and last.id == restore_id:
                self._step = ""
                await until_answered(lambda: self._client().tell_restore(restore_id, last.result), "a restore's result")
        except Exception:
            # A bug here must not end the agent.
            log.exception("a restore failed in a way that nobody foresaw")
        finally:
            self._step = self._trouble = ""
            self._order = None

    async def _restore(self, restore_id: str) -> RestoreRecord | None:
        """Return what came of it; None if control doesn't want it any more."""
        folder = self._state / FOLDER / restore_id
        order = record = None
        try:
            await asyncio.to_thread(_remove_others, self._state / FOLDER, restore_id)
            if (order := await self._fetch(restore_id, folder)) is not None:
                log.info("the database of %s is being brought back", text(order.at))
                record = await self._bring_back(restore_id, order, folder)
            if order is None or record is None:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                return None
            return record
        except CodedError as failed:
            result = wire.RestoreResult("failed", failed.code[:64], failed.message[:SHOWN])
        except OSError as error:
            result = wire.RestoreResult("failed", "disk_failed", f"The state directory can't be used: {error}"[:SHOWN])
        except Exception as error:
            log.exception("a restore failed in a way that nobody foresaw")
            result = wire.RestoreResult("failed", "internal", f"The edge runtime made a mistake: {error!r}"[:SHOWN])
        log.error("the database wasn't brought back, and nothing was changed: %s", result.message)
        now = clock.now()
        record = RestoreRecord(restore_id, now if order is None else order.at, now, result)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(record.keep, self._state)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return record

    async def _fetch(self, restore_id: str, folder: Path) -> wire.RestoreOrder | None:
        """Get the order's files, however long that takes; None if control doesn't want the restore any more.

        Raises: RestoreFailed.
        """
        pause = PAUSE
        while True:
            order = await self._ordered(restore_id)
            if order is None:
                return None
            before = self._fetched
            self._order, self._step = order, "fetch"
            try:
                await backup_files.fetch(self._client(), order, folder, self._told)
            except (NoAnswer, ControlRefused) as error:
                if error.message != self._trouble:
                    log.warning("files of the backup don't come, and are asked for again: %s", error.message)
                self._trouble = error.message
            else:
                self._trouble = ""
                return order
            pause = PAUSE if self._fetched > before else min(PAUSE_CAP, 2 * pause)
            await clock.sleep(pause)

    def _told(self, fetched: int) -> None:
        self._fetched = fetched

    async def _ordered(self, restore_id: str) -> wire.RestoreOrder | None:
        """Return the order, with fresh URLs; None if control doesn't want the restore any more.

        Raises: RestoreFailed, when control has no files for it.
        """

        async def ask() -> wire.RestoreOrder:
            try:
                return await self._client().restore_order(restore_id)
            except ControlRefused as refusal:
                if refusal.status == 404 or not retries.final(refusal.status):
                    raise
                raise RestoreFailed(refusal.code, refusal.message) from None

        return await until_answered(ask, "the restore")

    async def _bring_back(self, restore_id: str, order: wire.RestoreOrder, folder: Path) -> RestoreRecord | None:
        """Raises: CodedError; OSError."""
        self._step = "assemble"
        place, made = await backup_files.assemble(order, folder, self._runtime.lock)
        self._step = "functions"
        functions = await self._functions(made.stored)
        # It may have been called off meanwhile.
        if await self._ordered(restore_id) is None:
            return None
        self._step = "exchange"
        release, present = made.stored.release, self._runtime.release
        inode = (await asyncio.to_thread((place / wal.FILE.name).stat)).st_ino
        record = RestoreRecord(restore_id, order.at, clock.now(), wire.RestoreResult("done"), inode)
        if release is not None:
            record.result.release, record.result.release_id = release.number, release.release_id

        def note(replaced: ReplacedDatabase) -> None:
            record.result.kept, record.result.before = str(replaced.folder / wal.FILE.name), replaced.position
            record.keep(self._state)

        self._rehearsals.give_way()
        try:
            replaced = await self._runtime.replace_database(PreparedDatabase(place, made.stored, functions), note)
        finally:
            self._rehearsals.go_on()
        faults.reach("edge.restoring.replaced")
        self.replaced = set() if present is None else {f.sha256 for f in present.functions}
        log.warning("the database is that of %s now; the one of before is kept in %s", text(order.at), replaced.folder)
        record.inode, record.ended_at = 0, clock.now()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(record.keep, self._state)
        await asyncio.to_thread(shutil.rmtree, self._state / FOLDER, ignore_errors=True)
        return record

    async def _functions(self, stored: Stored) -> list[LocalFunction]:
        """Return the functions of a database's release with their code. Raises: SyncFailed."""
        if stored.release is None:
            return []
        functions = stored.release.functions
        self.keeps = {f.sha256 for f in functions}
        pause = PAUSE
        while True:
            try:
                await self._artifacts.fetch(self._client(), [planned(function) for function in functions], ())
                break
            except SyncFailed as failed:
                if failed.code != "artifact_unreachable":
                    raise
                self._trouble = failed.message
            await clock.sleep(pause)
            pause = min(PAUSE_CAP, 2 * pause)
        self._trouble = ""
        return await self._compiler.functions(functions)


def planned(function: LocalFunction) -> wire.PlannedFunction:
    """Return a function as a plan would have it; control knows the size of its artifact."""
    return wire.PlannedFunction(
        name=function.name,
        version=function.version,
        sha256=function.sha256,
        size=0,
        url=f"/v1/artifacts/{function.sha256}",
        manifest=msgspec.to_builtins(function.manifest),
        manifest_digest=function.manifest_digest,
    )


def _settled(state: Path) -> RestoreRecord | None:
    """Return what came of the last restore. If the process ended in the exchange, find out whether that was made; if
    not, remove what would have been exchanged."""
    record = RestoreRecord.kept(state)
    if record is None or not record.inode:
        return record
    try:
        if (state / wal.FILE).stat().st_ino == record.inode:
            record.inode = 0
            record.keep(state)
            return record
        # It has the name of what would have been kept for a moment before the exchange.
        kept = Path(record.result.kept)
        if kept.parent.parent == state and kept.exists() and kept.stat().st_ino == record.inode:
            shutil.rmtree(kept.parent)
        files.remove(RestoreRecord.path(state))
    except OSError as error:
        log.error("whether the last restore of the database was finished can't be found out: %s", error)
    return None


def _remove_others(folder: Path, restore_id: str) -> None:
    """Remove the files of other restores. Raises: OSError."""
    files.make_folder(folder)
    for path in folder.iterdir():
        if path.name != restore_id:
            shutil.rmtree(path, ignore_errors=True)
