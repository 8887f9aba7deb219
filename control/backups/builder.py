"""Makes a database file of what the store has of a lineage, in a private folder and a fenced child.

Control itself never parses what comes out: `edge_runtime.oneshot.assemble` does, with limits of memory, disk and time.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from control.backups import objects
from control.backups.chain import ChainError, chain
from control.backups.objects import BackupFile
from control.edge_check import ANSWER_LIMIT, ENVIRONMENT
from control.problems import ProblemError
from control.protocol import ltx
from control.storage.object_store import Store

DOWNLOADS: Final = 8
"""Files that are downloaded concurrently."""
TRIES: Final = 3
"""How often a lineage is listed again because a file was merged away meanwhile."""
PRIVATE: Final = "skerry-backups-"
"""What the names of replicas' own folders in the spool begin with."""
YOUNG: Final = 60.0
"""Seconds after its beginning in which such a folder may not be locked yet."""
RESERVE: Final = 256 * 1024 * 1024
"""Bytes of the disk that stay free."""
DATABASE: Final = "skerry.db"
MERGED: Final = "merged"


@dataclass(frozen=True)
class BuiltDatabase:
    """A database that was made of a backup's files."""

    path: Path
    transaction: int
    at_ms: int
    """Unix milliseconds of when the node had committed all of it."""
    size: int
    """Bytes."""
    files: list[BackupFile]
    """What it was made of; they are in the folder of `path`."""
    findings: list[str]
    """What is wrong with it, one sentence each; empty if it is whole."""
    schema_digest: str
    rows: dict[str, int]
    """How many rows its tables have, by their names in lower case."""
    stored: dict[str, Any]
    """The release and the inventory that it records."""

    @property
    def read(self) -> int:
        """Return the bytes that were downloaded."""
        return sum(file.size for file in self.files)


class FileGone(Exception):
    """A file isn't at the store any more: it was merged, or swept."""


class Builder:
    """Makes databases of lineages, in folders that are gone afterwards."""

    def __init__(self, store: Store, folder: Path, most: int, deadline: float) -> None:
        """`most`: bytes that the files of a database, and the database itself, may have. `deadline`: seconds for making
        one of files that are there."""
        self._store = store
        self.folder = folder
        self._most = most
        self._deadline = deadline
        self.read = 0
        """Bytes of files that were downloaded so far."""

    async def files(self, node: str, lineage: str) -> list[BackupFile]:
        """Return the files that the store has of a lineage. Raises: ProblemError, as `Store` does."""
        return list(await self.listed(node, lineage))

    async def listed(
        self, node: str, lineage: str, levels: Sequence[int] = objects.LEVELS, after: int = 0
    ) -> dict[BackupFile, int]:
        """Return the files that the store has of a lineage, and when it got each (Unix milliseconds): those of these
        levels that begin after a transaction. Raises: ProblemError, as `Store` does."""
        prefix = objects.prefix(node, lineage)
        found = {}
        for level in levels:
            # All keys of files that begin with `after` or earlier come before this one.
            begin = f"{prefix}{level}/{after + 1:016x}"
            async for page in self._store.under(f"{prefix}{level}/", begin):
                for item in page:
                    for file in objects.files_of([(item.key, item.size)], node, lineage):
                        found[file] = int(item.modified.timestamp() * 1000)
        return found

    async def header(self, node: str, lineage: str, file: BackupFile) -> ltx.Header | None:
        """Return the header of a file; None if it isn't at the store any more.

        Raises: ProblemError backup_damaged, when it has none; and as `Store` does.
        """
        data = await self._store.beginning(objects.key(node, lineage, file), ltx.HEADER_BYTES)
        if data is None:
            return None
        try:
            return ltx.parse_header(data)
        except ltx.LtxError as error:
            raise ProblemError("backup_damaged", f"the file {file.name} can't be read: {error}") from None

    @asynccontextmanager
    async def built(self, node: str, lineage: str, to: int | None = None) -> AsyncIterator[BuiltDatabase]:
        """Make the database of a transaction, or of the lineage's latest one; it is there until the block ends.

        Raises: ProblemError backup_incomplete, when no files lead there; backup_damaged, when what does isn't whole;
        spool_full, when that would take more room than there is, or than it may have; and as `Store` does.
        """
        with tempfile.TemporaryDirectory(prefix="skerry-backup-", dir=self.folder) as made:
            folder = Path(made)
            with _disk_failures(folder):
                files = await self._download(folder, node, lineage, to)
            answer = await self._assemble(folder)
            yield BuiltDatabase(
                path=folder / DATABASE,
                transaction=answer["transaction"],
                at_ms=answer["at_ms"],
                size=answer["bytes"],
                files=files,
                findings=answer["findings"],
                schema_digest=answer["schema_digest"],
                rows=answer["rows"],
                stored=answer["stored"],
            )

    async def _download(self, folder: Path, node: str, lineage: str, to: int | None) -> list[BackupFile]:
        """Download what leads to a transaction; return these files."""
        for _ in range(TRIES):
            try:
                files = chain(await self.files(node, lineage), to)
            except ChainError as error:
                raise ProblemError(
                    "backup_incomplete", f"nothing leads to the state that was asked for: {error}"
                ) from None
            try:
                await self._check_room(folder, node, lineage, files)
                await self._fetch_all(folder, node, lineage, files)
            except FileGone:
                await asyncio.to_thread(_empty, folder)
                continue
            return files
        raise ProblemError("backup_incomplete", "files of the backup were deleted while they were read; try again")

    async def _check_room(self, folder: Path, node: str, lineage: str, files: list[BackupFile]) -> None:
        header = await self.header(node, lineage, files[-1])
        if header is None:
            raise FileGone
        self._check_sizes(folder, sum(file.size for file in files), header.pages * header.page_bytes)

    def _check_sizes(self, folder: Path, needed: int, database: int) -> None:
        """Check that files of so many bytes, and what is made of them, may be here. Raises: ProblemError spool_full."""
        if max(needed, database) > self._most:
            text = f"the backup's files have {needed} bytes and come to {database}, and control takes {self._most}"
            raise ProblemError("spool_full", text)
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        if needed + database + RESERVE > free:
            text = f"making it takes {needed + database} bytes of {folder.parent}, which has {free} free"
            raise ProblemError("spool_full", text)

    async def merged(self, folder: Path, wanted: Sequence[BackupFile]) -> list[Path]:
        """Make files of the files in a folder, once; return where they are. They have no more bytes together.

        Raises: ProblemError backup_damaged, spool_full.
        """
        self._check_sizes(folder, await asyncio.to_thread(_size, folder), 0)
        names = [ltx.name(file.first, file.last) for file in wanted]
        await self._assemble(folder, "--merge", *names)
        return [folder / MERGED / name for name in names]

    async def fetch(self, folder: Path, node: str, lineage: str, files: Collection[BackupFile]) -> None:
        """Download files to a folder, under their own names.

        Raises: ProblemError backup_incomplete, when one was deleted meanwhile; backup_damaged, spool_full; and as
        `Store` does.
        """
        self._check_sizes(folder, sum(file.size for file in files), 0)
        try:
            with _disk_failures(folder):
                await self._fetch_all(folder, node, lineage, files)
        except FileGone:
            raise ProblemError("backup_incomplete", "files of the backup were deleted while they were read") from None

    async def _fetch_all(self, folder: Path, node: str, lineage: str, files: Iterable[BackupFile]) -> None:
        places = asyncio.Semaphore(DOWNLOADS)
        try:
            async with asyncio.TaskGroup() as group:
                for file in files:
                    group.create_task(self._fetch(folder, node, lineage, file, places))
        except* (FileGone, ProblemError, OSError) as failed:
            raise failed.exceptions[0] from None

    async def _fetch(self, folder: Path, node: str, lineage: str, file: BackupFile, places: asyncio.Semaphore) -> None:
        """Download a file, which must have the size that was listed."""
        async with places:
            try:
                _answer, pieces = await self._store.open(objects.key(node, lineage, file))
            except ProblemError as error:
                if error.code == "unknown_artifact":
                    raise FileGone from None
                raise
            size = 0
            with (folder / ltx.name(file.first, file.last)).open("xb") as target:
                async with aclosing(pieces):
                    async for piece in pieces:
                        size += len(piece)
                        self.read += len(piece)
                        if size > file.size:
                            break
                        await asyncio.to_thread(target.write, piece)
            if size != file.size:
                text = f"the file {file.name} has {size} bytes, and was listed with {file.size}"
                raise ProblemError("backup_damaged", text)

    async def _assemble(self, folder: Path, *more: str) -> dict[str, Any]:
        """Have a child make the database, or one file; return its answer."""
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "edge_runtime.oneshot.assemble", str(folder), "--bytes", str(self._most), *more),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            start_new_session=True,
            limit=ANSWER_LIMIT,
        )
        out = err = b""
        try:
            async with asyncio.timeout(self._deadline):
                out, err = await child.communicate()
        except TimeoutError:
            text = f"nothing came of the backup's files after {self._deadline:.0f} s"
            raise ProblemError("backup_damaged", text) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        with contextlib.suppress(orjson.JSONDecodeError):
            answer = orjson.loads(out)
            if isinstance(answer, dict) and answer.get("ok"):
                return answer
            if isinstance(answer, dict) and "code" in answer:
                raise ProblemError("backup_damaged", f"{answer['message']} [{answer['code']}]")
        last = err.decode(errors="replace").strip().rpartition("\n")[2][:500]
        raise ProblemError(
            "check_unavailable", f"nothing could be made of the backup's files (status {child.returncode}): {last}"
        )


@contextlib.contextmanager
def _disk_failures(folder: Path) -> Iterator[None]:
    """Have errors of the disk raised as ProblemError spool_full or spool_failed."""
    try:
        yield
    except OSError as error:
        code = "spool_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "spool_failed"
        raise ProblemError(code, f"files of a backup can't be kept in {folder.parent}: {error.strerror}") from error


@contextlib.contextmanager
def private_folder(spool: Path) -> Iterator[Path]:
    """Make a folder in the spool for one process, until the block ends, and delete those of processes that were killed.

    It is the spool itself where no folder can be made, as on a full disk: whoever needs room says so.
    """
    for left in spool.glob(f"{PRIVATE}*"):
        with contextlib.suppress(OSError):
            _delete_left(left)
    try:
        made = Path(tempfile.mkdtemp(prefix=PRIVATE, dir=spool))
        descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield spool
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(descriptor)


def _delete_left(folder: Path) -> None:
    """Delete a folder of `private_folder` that no process has any more. Raises: OSError, when one has it."""
    about = folder.lstat()
    if about.st_uid != os.geteuid() or time.time() - about.st_mtime < YOUNG:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files of a backup."""
    return sum(path.stat().st_size for path in folder.iterdir() if ltx.transactions(path.name))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
