"""Makes a database file of what the store has of a lineage, in a private folder and a fenced child.

Control itself never parses what comes out: `edge_runtime.oneshot.assemble` does, with limits of memory, disk and time.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
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
    read: int
    """Bytes that were downloaded."""
    findings: list[str]
    """What is wrong with it, one sentence each; empty if it is whole."""
    schema_digest: str
    rows: dict[str, int]
    """How many rows its tables have, by their names in lower case."""
    stored: dict[str, Any]
    """The release and the inventory that it records."""


class FileGone(Exception):
    """A file isn't at the store any more: it was merged, or swept."""


class Builder:
    """Makes databases of lineages, in folders that are gone afterwards."""

    def __init__(self, store: Store, folder: Path, most: int, deadline: float) -> None:
        """`most`: bytes that the files of a database, and the database itself, may have. `deadline`: seconds for making
        one of files that are there."""
        self._store = store
        self._folder = folder
        self._most = most
        self._deadline = deadline

    async def files(self, node: str, lineage: str) -> list[BackupFile]:
        """Return the files that the store has of a lineage. Raises: ProblemError, as `Store` does."""
        prefix = objects.prefix(node, lineage)
        listed = [(item.key, item.size) async for page in self._store.under(prefix) for item in page]
        return objects.files_of(listed, node, lineage)

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
        with tempfile.TemporaryDirectory(prefix="skerry-backup-", dir=self._folder) as made:
            folder = Path(made)
            read = await self._download(folder, node, lineage, to)
            answer = await self._assemble(folder)
            yield BuiltDatabase(
                path=folder / DATABASE,
                transaction=answer["transaction"],
                at_ms=answer["at_ms"],
                size=answer["bytes"],
                read=read,
                findings=answer["findings"],
                schema_digest=answer["schema_digest"],
                rows=answer["rows"],
                stored=answer["stored"],
            )

    async def _download(self, folder: Path, node: str, lineage: str, to: int | None) -> int:
        """Download what leads to a transaction; return its bytes."""
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
            return sum(file.size for file in files)
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

    async def merged(self, folder: Path, node: str, lineage: str, files: list[BackupFile]) -> Path:
        """Make one file of files that follow each other, in an empty folder.

        Raises: ProblemError backup_incomplete, backup_damaged, spool_full; and as `Store` does.
        """
        self._check_sizes(folder, sum(file.size for file in files), sum(file.size for file in files))
        try:
            await self._fetch_all(folder, node, lineage, files)
        except FileGone:
            raise ProblemError("backup_incomplete", "files of the backup were deleted while they were read") from None
        await self._assemble(folder, "--merge")
        return folder / MERGED

    async def _fetch_all(self, folder: Path, node: str, lineage: str, files: list[BackupFile]) -> None:
        places = asyncio.Semaphore(DOWNLOADS)
        try:
            async with asyncio.TaskGroup() as group:
                for file in files:
                    group.create_task(self._fetch(folder, node, lineage, file, places))
        except* (FileGone, ProblemError) as failed:
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


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
