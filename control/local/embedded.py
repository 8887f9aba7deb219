"""The local metadata database and artifact store of ``skerry up`` and of the tests.

They take the place of CockroachDB and MinIO and are reached in the same way, by URLs. Nothing outlives the process
that started them, and everything they keep is under one folder: ``metadata/``, ``artifacts/`` and ``logs/``.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from control.local.postgres import PostgreSQL, create_database
from control.local.process import ServiceError
from control.local.seaweedfs import SeaweedFS

__all__ = ["LocalServices", "ServiceError", "create_database", "services"]

ORPHANS_LIMIT = 20.0
"""Seconds to wait for servers whose parent was killed; they are told to end in order."""


@dataclass(frozen=True)
class LocalServices:
    """Both services, running; each can be stopped, killed and started again."""

    metadata: PostgreSQL
    artifacts: SeaweedFS

    @property
    def metadata_url(self) -> str:
        """``postgresql://USER:PASSWORD@127.0.0.1:PORT/DATABASE``."""
        return self.metadata.url

    @property
    def artifacts_url(self) -> str:
        """``http://KEY:SECRET@127.0.0.1:PORT/BUCKET``."""
        return self.artifacts.url

    async def watch(self) -> NoReturn:
        """Raise `ServiceError` as soon as one of them has ended by itself."""
        while True:
            self.metadata.check()
            self.artifacts.check()
            await asyncio.sleep(0.25)


@asynccontextmanager
async def services(home: Path) -> AsyncIterator[LocalServices]:
    """Both services, with their files under `home`, which is made where it is missing.

    To be entered in the main thread, whose end ends them. Raises `ServiceError` where they can't start: another
    process serves this home, a package is missing, a server fails (the message has the end of its log).
    """
    home = home.absolute()
    home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    async with locked(home / "lock", 0, f"another process runs Skerry's local services in {home}; end it first"):
        # The servers hold this one too, so that after our kill -9 a new start waits until they have ended.
        message = f"servers of an earlier run still hold {home} after {ORPHANS_LIMIT:.0f} s"
        async with locked(home / "services.lock", ORPHANS_LIMIT, message) as held:
            metadata = PostgreSQL(home / "metadata", home / "logs" / "metadata.log", held)
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
    """Hold the lock on `path`, waiting for it for `wait` seconds; raises `ServiceError` with `message`."""
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
