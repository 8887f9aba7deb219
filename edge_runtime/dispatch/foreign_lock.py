"""Finds out which process is blocking the database. A process outside the node, such as a shell or a backup, is named;
a process of the node without a right to the lock is killed."""

import contextlib
import logging
import os
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edge_runtime import clock, database_users
from edge_runtime.database_users import DatabaseUser, FileLock
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.wal import Pressure

log = logging.getLogger("skerry.database")

PERIOD: Final = 0.25
"""Seconds between two checks."""
LONG: Final = 1.0
"""Seconds after which a lock is reported: other programs may write too, as long as they are quick."""
LOG_PERIOD: Final = 60.0
"""Seconds between two log lines while the lock is held."""
MANY: Final = 100
"""A number of file locks that no honest worker reaches: SQLite takes about ten."""
WRITER_LOCK: Final = "writer.lock"
"""The file, beside the database, that one process of the node at a time locks in order to write (`sql.writer_lock`)."""


class ForeignLock:
    """Keeps `Pool.held_by`; `run` must be running while calls are."""

    def __init__(self, pool: Pool, processes: ZygoteClient, database: Path) -> None:
        self._pool = pool
        self._processes = processes
        self._database = database
        self._holder: DatabaseUser | None = None
        self._since = 0.0
        self._logged = 0.0
        self._idle: set[WorkerLink] = set()
        """Workers that, at the last check, held a lock without a call that may. They get no calls until the next check,
        so that no other function's call dies with them."""
        pool.find_holder, pool.find_writer = self.find, self.find_writer

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            self.look(clock.monotonic())
            await clock.sleep(PERIOD)

    def look(self, now: float) -> None:
        """Check once, at the time `now` of `clock.monotonic`."""
        locks = self._locks()
        self._judge(0 if locks is None else locks.pid)
        holder = None if locks is None or self._is_ours(locks.pid) else locks
        if holder is None or self._holder is None or holder.pid != self._holder.pid:
            if self._pool.held_by:
                log.info("the database is free again, after %.0f s", now - self._since)
            self._pool.held_by = ""
            self._since, self._logged = now, 0.0
        self._holder = holder
        if holder is None or now - self._since < LONG:
            return
        self._pool.held_by = str(holder)
        if not self._logged or now - self._logged >= LOG_PERIOD:
            self._logged = now
            text = "another process holds the database, for %.0f s now: %s. Calls that need it get 503 (database_held)"
            log.error(text, now - self._since, holder)

    def find(self) -> str:
        """Return the process that holds the database right now, in words; empty if none does."""
        return str(self._foreign() or "")

    def find_writer(self) -> str:
        """Return the node's process that holds the writer lock, with the function whose call may be the reason."""
        pid = self._writer(database_users.file_locks())
        link = self._link(pid)
        if link is None:
            return f"process {pid}" if pid else ""
        return next((f"worker {pid} ({job.name})" for job in link.jobs if isinstance(job, Call)), f"worker {pid}")

    def _writer(self, locks: Iterable[FileLock]) -> int:
        return database_users.flock_holder(self._database.with_name(WRITER_LOCK), locks)

    def _link(self, pid: int) -> WorkerLink | None:
        return next((link for link in self._pool.links if link.child.pid == pid), None)

    def _foreign(self) -> DatabaseUser | None:
        holder = self._locks()
        return None if holder is None or self._is_ours(holder.pid) else holder

    def _locks(self) -> DatabaseUser | None:
        try:
            return database_users.lock_holder(self._database)
        except OSError as error:
            log.debug("the database's locks can't be looked at: %s", error)
            return None

    def _is_ours(self, pid: int) -> bool:
        # The node's processes that open the file are the zygote's children. One whose parent is unknown has just
        # exited.
        return bool(pid) and (self._is_child(pid) or database_users.parent(pid) is None)

    def _is_child(self, pid: int) -> bool:
        # If there is no zygote, don't match the parent 0 that other processes have.
        return self._processes.pid > 0 and database_users.parent(pid) == self._processes.pid

    def _judge(self, holder: int) -> None:
        """Kill the node's processes that block the database without a call that may: a guest may have taken over a
        worker. `holder`: the process that holds SQLite's lock, 0 if none does."""
        waited_for = any(link.seen().state == progress_page.WAITING for link in self._pool.links)
        full = self._pool.pressure is not Pressure.NONE
        locks = database_users.file_locks() if waited_for or full else []
        self._end_crowds(locks)
        writer = self._writer(locks) if waited_for else 0
        idle = set[WorkerLink]()
        for pid in {holder, writer}:
            link = self._link(pid)
            if link is None:
                # Don't kill one that holds only SQLite's lock: it recovers the log, and only the zygote knows it.
                lost = pid and pid == writer and not self._processes.knows(pid)
                if lost and self._is_child(pid):
                    log.error("process %d, which this node has lost, holds the writer lock: it is ended", pid)
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
            elif not link.ready.done():
                # It opens the file, which may have to be made first. The supervisor limits how long that takes.
                continue
            elif not link.killed and not any(isinstance(job, Call) and job.writes for job in link.jobs):
                what = "holds the writer lock" if pid == writer else "has the database locked"
                self._end_idle(link, f"it {what}, and has no call that may", idle)
        # While one reads, the log can't restart from its beginning.
        for pid in database_users.readers(self._database, locks) if full else ():
            link = self._link(pid)
            if link is not None and link.ready.done() and not link.killed and not link.jobs:
                self._end_idle(link, "it reads from the database, and has no call", idle)
        for link in self._idle - idle:
            link.rests = False
            self._pool.place(link)
            self._pool.feed()
        self._idle = idle

    def _end_idle(self, link: WorkerLink, what: str, idle: set[WorkerLink]) -> None:
        """Kill a worker that had no call that may at the last check either. A worker releases the lock before it
        answers; but one that reads may recover the log, for a moment."""
        idle.add(link)
        if link in self._idle:
            link.end(what)
            return
        link.rests = True
        self._pool.place(link)
        if link.jobs:
            link.take_back()

    def _end_crowds(self, locks: list[FileLock]) -> None:
        """Kill workers with so many locks that finding the writer lock's holder takes long or fails."""
        if len(locks) > MANY:
            for pid, count in Counter(lock.pid for lock in locks).items():
                link = self._link(pid) if count > MANY else None
                if link is not None and not link.killed:
                    link.end(f"it has {count} locks on files, or more")
