"""The local metadata database and artifact store of ``skerry up`` and of the tests: PostgreSQL and SeaweedFS.

They replace CockroachDB and MinIO and are reached in the same way, by URLs. They exit with the process that started
them, and keep their files in one folder: ``metadata/``, ``artifacts/`` and ``logs/``.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from control.local.postgres import PostgreSQL, create_database
from control.local.process import ServiceError
from control.local.seaweedfs import SeaweedFS

__all__ = ["LocalServices", "ServiceError", "create_database", "services"]

ORPHANS_LIMIT = 20.0
"""Seconds to wait for the servers of an earlier run whose process was killed: they are shutting down."""


@dataclass(frozen=True)
class LocalServices:
    """The two running services; each can be stopped, killed and started again."""

    metadata: PostgreSQL
    artifacts: SeaweedFS

    @property
    def metadata_url(self) -> str:
        """Return ``postgresql://USER:PASSWORD@127.0.0.1:PORT/DATABASE``."""
        return self.metadata.url

    @property
    def artifacts_url(self) -> str:
        """Return ``http://KEY:SECRET@127.0.0.1:PORT/BUCKET``."""
        return self.artifacts.url

    async def watch(self) -> NoReturn:
        """Watch both services, until cancelled.

        Raises: ServiceError, as soon as one of them has exited unexpectedly.
        """
        while True:
            self.metadata.check()
            self.artifacts.check()
            await asyncio.sleep(0.25)


@asynccontextmanager
async def services(home: Path, postgresql: Mapping[str, str] | None = None) -> AsyncIterator[LocalServices]:
    """Run both services, with their files under `home`, which is made if it is missing.

    `postgresql` are PostgreSQL settings by name, in addition to the usual ones or instead of them.

    Enter this in the main thread: the servers exit when the thread that started them ends.

    Raises: ServiceError, when another process runs services in `home`, a package is missing, or a server fails; the
    message then contains the end of its log.
    """
    home = home.absolute()
    home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    async with locked(home / "lock", 0, f"another process runs Skerry's local services in {home}; end it first"):
        # The servers hold this lock too: after a kill -9 of this process, a new start waits until they have exited.
        message = f"servers of an earlier run still hold {home} after {ORPHANS_LIMIT:.0f} s"
        async with locked(home / "services.lock", ORPHANS_LIMIT, message) as held:
            metadata = PostgreSQL(home / "metadata", home / "logs" / "metadata.log", held, postgresql or {})
            artifacts = SeaweedFS(home / "artifacts", home / "logs" / "artifacts.log", held)
            async with AsyncExitStack() as stack:
                stack.push_async_callback(metadata.stop)
                stack.push_async_callback(artifacts.stop)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(metadata.start())
                        group.create_task(artifacts.start())
                except ExceptionGroup as errors:
                    raise errors.exceptions[0] from None
                yield LocalServices(metadata, artifacts)


@asynccontextmanager
async def locked(path: Path, wait: float, message: str) -> AsyncIterator[int]:
    """Hold the lock on the file `path`; yield the file's descriptor.

    Raises: ServiceError, with `message`, when another process still holds the lock after `wait` seconds.
    """
    deadline = time.monotonic() + wait
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServiceError(message) from None
            await asyncio.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)
