"""Holds the node's release, and moves to the next one with one libsql commit (a "flip"), while calls run.

Every call runs entirely on one release. While a release is applied, calls that would write wait. Reads go on, whatever
the function is granted: those whose transaction began before the commit finish on the old release; the others find the
new release in the file and are dispatched again. After any error or time limit before the commit, the old release keeps
serving. If it is unknown whether a commit happened, the file decides.
"""

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from control.protocol import faults, wire
from edge_runtime import clock, database_exchange, database_users, files, wal
from edge_runtime.dispatch.outcomes import REPLACED
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.release_gate import ended, settled
from edge_runtime.dispatch.supervisor import LoadFailed, Supervisor
from edge_runtime.dispatch.trial_load import ReleaseApplier
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.frames import LocalFunction, LocalRelease
from edge_runtime.ipc.rehearsal_messages import RehearsalTask
from edge_runtime.ipc.restore_messages import PreparedDatabase, ReplacedDatabase
from edge_runtime.ipc.zygote_client import Child, ZygoteClient
from edge_runtime.release import applier_process, rehearsal_process, stored_release
from edge_runtime.release.applier_process import StepRunner, has_steps
from edge_runtime.release.checkpoint_schedule import FindPosition, no_position
from edge_runtime.release.compiler import Compiler
from edge_runtime.release.secrets import Secrets
from edge_runtime.release.witness import Witness, after

log = logging.getLogger("skerry.flip")

BOOT_PAUSE: Final = 1.0
"""Seconds until serving the stored release at startup is tried again."""
POSTPONED: Final = 60.0
"""Seconds until compilations that lacked disk space or a process are tried again."""
SECRETS_PAUSE: Final = 2.0
"""Seconds between two checks of the secrets file."""
SECRETS_AGAIN: Final = 60.0
"""Seconds until new secret values with which functions couldn't be loaded are tried again."""
BACKUP_LIMIT: Final = 15.0
"""Seconds that the backup of the database that is about to be replaced is waited for, and calls wait as long again."""
USERS_LIMIT: Final = 10.0
"""Seconds that replacing the database waits for other programs that have it open."""
USERS_PAUSE: Final = 0.1
COMMIT_LIMIT: Final = 30.0
"""Seconds for a COMMIT; after that the applier is killed, and the file shows whether it was committed."""


@contextlib.asynccontextmanager
async def _without_backup() -> AsyncIterator[FindPosition]:
    yield no_position


async def _no_backup() -> wire.BackupPosition | None:
    """Return no position: the database isn't backed up."""
    return None


class ReleaseManager:
    """The node's release, and its changes, one at a time. `boot` must come first."""

    def __init__(
        self,
        pool: Pool,
        supervisor: Supervisor,
        compiler: Compiler,
        processes: ZygoteClient,
        secrets: Secrets,
        witness: Witness,
        *,
        flip_limit: float,
        apply_limit: float,
    ) -> None:
        self._pool = pool
        self._supervisor = supervisor
        self._compiler = compiler
        self._processes = processes
        self._state = Path(processes.settings.state)
        self._secrets = secrets
        self._witness = witness
        self._flip_limit = flip_limit
        self._apply_limit = apply_limit
        self.steps = StepRunner(processes, apply_limit, pool.named)
        self._one = asyncio.Lock()
        self._changed = asyncio.Event()
        self._stored = frames.Stored(None, wire.Inventory())
        self._forged: SyncFailed | None = None
        """Why nothing is served although the libsql file names a release: that isn't the release that was committed."""
        self._forged_at = ""
        """When that was found (RFC 3339)."""
        self._untold: SyncFailed | None = None
        """The same failure, until it has been reported to control."""
        self.less = asyncio.Event()
        """Set when `inventory` has lost a function."""
        self.before_commit: Callable[[], AbstractAsyncContextManager[FindPosition]] = _without_backup
        """Entered before calls are held for a release, and left after its COMMIT."""
        self.boundary: wire.BackupPosition | None = None
        """The last transaction before the release that was applied last, in the backup of the database; None if that
        isn't known."""
        self.finish_backup: Callable[[], Awaitable[wire.BackupPosition | None]] = _no_backup
        """Brings all that was committed to the database's backup, and returns the position there; None if there is no
        backup, or it can't be brought there now. Called before another database takes its place: while calls go on,
        and again once nobody writes."""
        self.committing: Callable[[], None] = lambda: None
        """Called before a release's COMMIT."""
        self.committed: Callable[[], None] = lambda: None
        """Called after a successful COMMIT."""

    @property
    def release(self) -> LocalRelease | None:
        """The release being served; None before the node's first one."""
        return self._stored.release

    @property
    def inventory(self) -> wire.Inventory:
        """What the node runs, for control. Functions whose artifacts are lost are left out, so that control sends them
        again."""
        inventory, lost = self._stored.inventory, self._compiler.lost
        if not lost:
            return inventory
        return msgspec.structs.replace(inventory, functions=[f for f in inventory.functions if f.sha256 not in lost])

    @property
    def lock(self) -> int:
        """Descriptor of the state directory's lock, for programs that run beside the calls."""
        return self._processes.lock

    def error(self) -> dict[str, str] | None:
        """Return, for the node's status, why nothing is served; None if something is."""
        forged = self._forged
        return forged if forged is None else {"code": forged.code, "message": forged.message, "at": self._forged_at}

    def forged(self) -> SyncFailed | None:
        """Return, once, the failure that tells control that the libsql file can't be trusted."""
        untold, self._untold = self._untold, None
        return untold

    async def boot(self) -> None:
        """Serve the release in the libsql file, without any network. If it isn't the one that was committed, nothing is
        served and calls wait. Raises: DatabaseUnfit, when the file can't be read."""
        async with self._one:
            stored = await stored_release.stored(self._processes, self._pool.named)
            if stored.unfinished:
                self.steps.unfinished.set()
            self._secrets.look()
            try:
                self._believe(stored)
            except SyncFailed:
                return
            if stored.release is not None:
                if stored.durable:
                    await asyncio.to_thread(self._witness.settle, stored)
                for failure in self._secrets.lacking(stored.release.functions).values():
                    log.error("%s", failure.message)
                functions = await self._compiler.available(stored.release.functions)
                await self._begin(stored, functions)
                served = ", ".join(f"{f.name}@{f.version}" for f in functions[:20]) or "no functions"
                log.info("release %d serves: %s", stored.release.number, served)
            else:
                self._stored = stored
                log.info("this node has no release yet")
            self._pool.let_go()
            self._changed.set()

    async def improve(self) -> None:
        """Bring the served functions to their best AOT files, one by one, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(POSTPONED if self._compiler.postponed else None):
                    await self._changed.wait()
            self._changed.clear()
            self._compiler.postponed.clear()
            while (release := self.release) is not None:
                lost = len(self._compiler.lost)
                functions = await self._compiler.improve(release)
                if len(self._compiler.lost) > lost:
                    self.less.set()
                if functions is None:
                    continue
                if functions is release.functions:
                    break
                async with self._one:
                    if self.release is not release:
                        # Another release has come meanwhile: its functions will find the new file.
                        continue
                    try:
                        await self._serve(self._stored, functions)
                    except LoadFailed as failed:
                        log.error("a better compiled function can't be loaded: %s", failed.message)
                        self._compiler.give_up({f.sha256 for f in functions if f not in release.functions}, failed.code)

    async def watch(self) -> None:
        """Give functions the new values of their secrets when the file changes, until cancelled. If they can't be
        loaded with the new values, try again after a while."""
        tried = -SECRETS_AGAIN
        while True:
            await clock.sleep(SECRETS_PAUSE)
            async with self._one:
                due = self._secrets.look() or clock.monotonic() - tried >= SECRETS_AGAIN
                functions = self.release.functions if self.release is not None else []
                if not (due and self._secrets.unloaded and any(f.manifest.secrets for f in functions)):
                    continue
                log.info("other values of secrets: the functions that have them are loaded again")
                tried = clock.monotonic()
                try:
                    await self._serve(self._stored, functions)
                except LoadFailed as failed:
                    log.error("functions can't be loaded with the new values of their secrets: %s", failed.message)

    async def advance(self, plan: wire.Plan, tell: Callable[[str], None]) -> None:
        """Run the steps before the flip to the plan's release, while the current one serves; `tell` gets their
        progress. Raises: SyncFailed, when one fails; what was done stays, and the next attempt continues there."""
        if self._forged is not None or not (has_steps(plan) or self.steps.unfinished.is_set()):
            return
        release = self.release
        serving = release.functions if release is not None else []
        generation = release.generation if release is not None else 0
        await self.steps.advance(frames.Advance(plan, generation, serving, self._secrets.of(serving)), tell)

    async def rehearse(self, plan: wire.Plan, functions: list[LocalFunction], seconds: float) -> wire.RehearsalResult:
        """Try a release on a copy of the node's data, in `seconds` at most, while the current one serves; `functions`
        are all its functions with their code.

        Raises: SyncFailed, when the release can't be tried, or wouldn't get as far as the database.
        """
        if self._forged is not None:
            raise SyncFailed("database_unverified", "There is no database that can be trusted to try a release on.")
        self._secrets.look()
        for failure in self._secrets.lacking(functions).values():
            raise SyncFailed(failure.code, failure.message)
        release = self.release
        serving = release.functions if release is not None else []
        settings = self._processes.settings
        task = RehearsalTask(
            os.getpid(),
            settings.state,
            plan,
            functions,
            self._secrets.of(functions),
            release.generation if release is not None else 0,
            serving,
            self._secrets.of(serving),
            has_steps(plan) or self.steps.unfinished.is_set(),
            settings.wal_limit,
            seconds,
        )
        return await rehearsal_process.rehearse(task, self.lock)

    async def apply(self, plan: wire.Plan, functions: list[LocalFunction]) -> wire.Inventory:
        """Move to the plan's release; `functions` are all its functions with their code. Return the resulting
        inventory.

        Raises: SyncFailed, when that can't be done; the old release then keeps serving.
        """
        async with self._one:
            applier = ReleaseApplier(self._processes)
            try:
                return await self._apply(plan, functions, applier)
            finally:
                applier.close()

    async def replace_database(
        self, prepared: PreparedDatabase, note: Callable[[ReplacedDatabase], None] = lambda _: None
    ) -> ReplacedDatabase:
        """Serve another database instead of the node's, with the release that it names. Calls wait meanwhile; one that
        still runs after the flip limit is ended. No rehearsal may be going on.

        Killed at any moment, the node has the one database or the other, whole. `note` is called in a thread just
        before the exchange; if it raises an OSError, there is none.

        Raises: SyncFailed, when that can't be done; the database of before is then served on.
        """
        async with self._one:
            # Before any call waits for them: another program to end, and most of what isn't in the backup yet.
            await self._unused(besides=self._processes.knows)
            await self._finished_backup()
            serial = 0
            if (release := prepared.stored.release) is not None:
                self._secrets.look()
                release = msgspec.structs.replace(release, functions=prepared.functions)
                try:
                    # Also in the workers of now, so that a function that can't be loaded changes nothing.
                    serial = await self._load(release)
                except LoadFailed as failed:
                    raise SyncFailed(failed.code, failed.message) from None
            # Nothing may look for a database that isn't there any more: a cancelled replacement is done first.
            replacing = asyncio.ensure_future(self._replace(prepared, release, serial, note))
            try:
                return await asyncio.shield(replacing)
            except asyncio.CancelledError:
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(COMMIT_LIMIT):
                        await asyncio.wait({replacing})
                replacing.cancel()
                raise

    async def _replace(
        self,
        prepared: PreparedDatabase,
        release: LocalRelease | None,
        serial: int,
        note: Callable[[ReplacedDatabase], None],
    ) -> ReplacedDatabase:
        """Raises: SyncFailed."""
        try:
            replaced = await self._exchange_held(prepared, note)
        except BaseException as error:
            self._supervisor.forget(serial)
            if self._forged is None:
                self._pool.let_go()
                if isinstance(error, SyncFailed) and self._stored.durable:
                    await asyncio.to_thread(self._witness.settle, self._stored)
            raise
        in_file = await stored_release.until_answered(self._processes, self._pool.named)
        try:
            # The witness was told of it: anything else is a fault of the disk or of this program.
            self._believe(in_file)
        except SyncFailed:
            self._supervisor.forget(serial)
            raise
        await asyncio.to_thread(self._witness.settle, in_file)
        self._forged = self._untold = None
        if release is None:
            self._supervisor.swap_to_nothing()
            self._stored = in_file
        else:
            self._swap(serial, frames.Stored(release, in_file.inventory, in_file.durable))
            self._compiler.lost.difference_update({f.sha256 for f in release.functions})
        if in_file.unfinished:
            self.steps.unfinished.set()
        self._pool.let_go()
        self._changed.set()
        # A poll that is held says what the node had before.
        self.less.set()
        log.warning("the node has another database, of release %d", 0 if release is None else release.number)
        return replaced

    async def _exchange_held(
        self, prepared: PreparedDatabase, note: Callable[[ReplacedDatabase], None]
    ) -> ReplacedDatabase:
        """Exchange the databases while no process has the node's open; calls are held from then on.

        Raises: SyncFailed, when that can't be done; the node's is then as it was.
        """
        if self._forged is None:
            self._pool.hold_writes(self._flip_limit)
        self._pool.hold_all()
        await settled(self._pool, self._flip_limit)
        await ended(self._pool, self._flip_limit)
        faults.reach("edge.replace.held")
        for link in self._pool.links:
            link.kill(REPLACED)
        async with self._processes.without("worker", "applier", "repeater"):
            position = await self._finished_backup()
            async with self._processes.down():
                await self._unused()
                replaced = ReplacedDatabase(database_exchange.new_place(self._state), position)
                await self._exchange(prepared, replaced, note)
        faults.reach("edge.replace.exchanged")
        return replaced

    async def _finished_backup(self) -> wire.BackupPosition | None:
        try:
            async with clock.timeout(BACKUP_LIMIT):
                return await self.finish_backup()
        except TimeoutError:
            log.warning("what the database has that is replaced isn't all in its backup after %.0f s", BACKUP_LIMIT)
            return None

    async def _unused(self, besides: Callable[[int], bool] = lambda _: False) -> None:
        """Wait until no other process has the database open, but those of which `besides` says so by their ids.

        Raises: SyncFailed, when one still has after `USERS_LIMIT` seconds.
        """
        database = self._state / wal.FILE
        until = clock.monotonic() + USERS_LIMIT
        while True:
            found = await asyncio.to_thread(database_users.users, database)
            if not (used := [user for user in found if not besides(user.pid)]):
                return
            if clock.monotonic() > until:
                text = f"{database} is in use by {database_users.told(used)}: end it first, then restore again"
                raise SyncFailed("database_in_use", text)
            await clock.sleep(USERS_PAUSE)

    async def _exchange(
        self, prepared: PreparedDatabase, replaced: ReplacedDatabase, note: Callable[[ReplacedDatabase], None]
    ) -> None:
        """Raises: SyncFailed."""
        try:
            await asyncio.to_thread(self._witness.announce_restore, prepared.stored)
            await asyncio.to_thread(note, replaced)
            faults.reach("edge.replace.announced")
            await asyncio.to_thread(database_exchange.exchange, self._state, prepared.folder, replaced.folder)
        except OSError as error:
            text = f"The restored database can't be put in the place of the node's, and nothing was changed: {error}"
            raise SyncFailed("restore_failed", text) from None
        try:
            await asyncio.to_thread(files.sync_folder, self._state)
        except OSError as error:
            # The witness has both digests, so the node trusts either.
            log.error("the database was replaced, but a loss of power may undo that: %s", error)

    async def _apply(self, plan: wire.Plan, functions: list[LocalFunction], applier: ReleaseApplier) -> wire.Inventory:
        """Raises: SyncFailed."""
        schema = plan.schema_changes[-1].number if plan.schema_changes else self.inventory.schema_version
        release = LocalRelease(plan.release_id, plan.release_number, plan.generation, schema, functions)
        self._secrets.look()
        for failure in self._secrets.lacking(functions).values():
            raise SyncFailed(failure.code, failure.message)
        try:
            serial = await self._load(release, applier)
        except LoadFailed as failed:
            raise SyncFailed(failed.code, failed.message) from None
        started = clock.monotonic()
        try:
            inventory = await self._flip(plan, release, serial, applier)
        except BaseException as error:
            if self._pool.serial != serial:
                self._supervisor.forget(serial)
            if self._forged is None:
                self._pool.let_go()
            if isinstance(error, SyncFailed):
                error.held = clock.monotonic() - started
                if self._stored.durable:
                    await asyncio.to_thread(self._witness.settle, self._stored)
            raise
        self._changed.set()
        if has_steps(plan):
            self.steps.unfinished.set()
        if self._stored.durable:
            await asyncio.to_thread(self._witness.settle, self._stored)
        return inventory

    async def _flip(
        self, plan: wire.Plan, release: LocalRelease, serial: int, tried_in: ReleaseApplier
    ) -> wire.Inventory:
        """Prepare, commit, swap. After an error calls may still be held."""
        self.boundary = None
        async with applier_process.started(tried_in.take()) as applier, self.before_commit() as find_position:
            await self._compiler.on_disk({f.sha256 for f in release.functions})
            faults.reach("edge.sync.prepare.before")
            if self._forged is None:
                self._pool.hold_writes(self._flip_limit + self._apply_limit + COMMIT_LIMIT)
            await settled(self._pool, self._flip_limit)
            stored = frames.Stored(release, after(self._stored.inventory, plan))
            # In parallel with the applier, unless the last COMMIT is in doubt: then the applier settles that first.
            announcing = asyncio.ensure_future(self._announce(stored)) if self._stored.durable else None
            # So that little is left to be shipped once nobody else can commit.
            shipping = asyncio.ensure_future(find_position())
            try:
                await self._prepare(applier, plan, release.functions, stored.inventory)
            except BaseException:
                begun = [shipping] if announcing is None else [announcing, shipping]
                await asyncio.gather(*begun, return_exceptions=True)
                raise
            faults.reach("edge.sync.prepare.after")
            try:
                await (announcing or self._announce(stored))
                if await shipping is not None:
                    # The applier holds the writer lock: nobody else commits before it does.
                    self.boundary = await find_position()
            except BaseException:
                await asyncio.gather(shipping, return_exceptions=True)
                await applier_process.abort(applier)
                raise
            self._pool.hold_at_commit()
            # From here to the swap nothing may stop halfway: a cancelled sync waits until it is done.
            commit = asyncio.ensure_future(self._commit(applier, stored, serial))
            try:
                return await asyncio.shield(commit)
            except asyncio.CancelledError:
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(COMMIT_LIMIT):
                        await asyncio.wait({commit})
                commit.cancel()
                raise

    async def _commit(self, applier: Child, stored: frames.Stored, serial: int) -> wire.Inventory:
        release = stored.release
        assert release is not None  # noqa: S101
        self.committing()
        try:
            reply = await applier.ask(frames.COMMIT, None, COMMIT_LIMIT)
        except (frames.ChildGone, TimeoutError):
            # The applier must be gone before the file is read, or it might commit after that.
            applier.kill()
            await applier.exited
            log.warning("the applier ended in the middle of a commit: the libsql file says how it ended")
            in_file = await stored_release.until_answered(self._processes, self._pool.named)
            self._believe(in_file)
            found = in_file.release
            if found is None or (found.release_id, found.generation) != (release.release_id, release.generation):
                if not in_file.durable:
                    self._in_doubt()
                    text = (
                        f"The applier ended in the COMMIT of release {release.number}, and the disk fails: after a "
                        "loss of power the node may have that release. Look at the disk."
                    )
                    raise SyncFailed("disk_failed", text) from None
                text = f"The applier ended before release {release.number} was committed; nothing was changed."
                raise SyncFailed("applier_died", text) from None
            stored = msgspec.structs.replace(stored, durable=in_file.durable)
        else:
            if reply.kind != frames.COMMITTED:
                failure = frames.decode_failure(reply.body)
                if failure.code == frames.COMMIT_UNKNOWN:
                    self._in_doubt()
                    raise SyncFailed("disk_failed", f"{failure.message} Look at the disk.")
                raise SyncFailed(failure.code, failure.message)
        self.committed()
        faults.reach("edge.sync.swap.before")
        self._swap(serial, stored)
        self._forged = self._untold = None
        # All of them have been fetched or checked again.
        self._compiler.lost.difference_update({f.sha256 for f in release.functions})
        # At once, since the applier may take a while to exit.
        self._pool.let_go()
        faults.reach("edge.sync.swap.after")
        return stored.inventory

    def _in_doubt(self) -> None:
        """Note that after a power loss the file may hold either the served release or the one whose COMMIT failed.
        Until the next release or the next startup settles that, the witness keeps both digests."""
        self._stored = msgspec.structs.replace(self._stored, durable=False)

    async def _prepare(
        self, applier: Child, plan: wire.Plan, functions: list[LocalFunction], wanted: wire.Inventory
    ) -> None:
        """Do everything except the COMMIT, which must lead to the inventory `wanted`. Raises: SyncFailed."""
        secrets, at = self._secrets.of(functions), clock.now().timestamp()
        order = frames.Apply(plan, functions, secrets, afresh=self._forged is not None, at=at)
        if wanted != await applier_process.prepare(applier, order, self._apply_limit, self._pool.named):
            text = "The libsql file would not hold what the plan says. Was it changed meanwhile, or by others?"
            raise SyncFailed("database_unverified", text)
        # The applier has ensured that.
        self._stored = msgspec.structs.replace(self._stored, durable=True)

    async def _announce(self, stored: frames.Stored) -> None:
        """Tell the witness what the libsql file will hold. Raises: SyncFailed, when that can't be saved to disk."""
        try:
            await asyncio.to_thread(self._witness.announce, self._stored, stored)
        except OSError as error:
            code = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
            text = f"{self._witness.path} can't be written: {error}. Look at the disk, then `skerry node retry`."
            raise SyncFailed(code, text) from None

    def _believe(self, stored: frames.Stored) -> None:
        """Check that the libsql file says what was committed.

        Raises: SyncFailed, when it doesn't; then nothing is served and calls wait.
        """
        if self._witness.confirms(stored):
            return
        text = (
            "The node's libsql file doesn't say what was last committed there: its record of functions, grants and "
            "schema was changed by others, or the file is another copy. Nothing of it is served, and the next sync "
            "puts the target's record in its place. Unless somebody has restored a backup, a worker was taken over: "
            "treat all rows as read and changed, and give the node a backup or an empty database."
        )
        log.error("%s", text)
        self._pool.hold_all()
        self._forged = self._untold = SyncFailed("database_unverified", text)
        self._forged_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._stored = frames.Stored(None, msgspec.structs.replace(stored.inventory, functions=[]))
        raise self._forged

    async def _begin(self, stored: frames.Stored, functions: list[LocalFunction]) -> None:
        """Serve the release in the file, as soon as there are workers for it."""
        while True:
            try:
                return await self._serve(stored, functions)
            except LoadFailed as failed:
                log.error("the release can't be served yet, and it is tried again: %s", failed.message)
                await clock.sleep(BOOT_PAUSE)

    async def _serve(self, stored: frames.Stored, functions: list[LocalFunction]) -> None:
        """Serve the release in the file with this code for its functions.

        Raises: LoadFailed, when a function can't be loaded and a release is served already.
        """
        assert stored.release is not None  # noqa: S101
        release = msgspec.structs.replace(stored.release, functions=functions)
        # A starting node serves what it can; a serving node keeps all it has rather than lose a function.
        serial = await self._load(release, whole=self._pool.serial != 0)
        self._swap(serial, frames.Stored(release, stored.inventory, stored.durable))

    async def _load(self, release: LocalRelease, applier: ReleaseApplier | None = None, *, whole: bool = True) -> int:
        """Have the workers load a release with the current secrets; return the serial. Raises: LoadFailed."""
        secrets, lacking = self._secrets.of(release.functions), self._secrets.lacking(release.functions)
        return await self._supervisor.load(release, secrets, lacking, applier, whole=whole)

    def _swap(self, serial: int, stored: frames.Stored) -> None:
        """Serve what was loaded."""
        self._supervisor.swap(serial)
        self._stored = stored
        self._secrets.unloaded = False

    def damaged(self, sha256: str) -> None:
        """Have an artifact's damaged compiled code made again."""
        self._compiler.damaged(sha256)
        self._changed.set()
