"""Merges what nodes ship: shipments into a file a minute, and a chain of files into a snapshot; and sweeps what is old.

A restore of a month of shipments would read a quarter of a million files. Which files are merged and which are deleted
is decided without I/O (`minutes`, `covered`, and `control.backups.retention`). A file is deleted only after what
replaces it was verified at the store, so that a restore finds a chain at each moment. A crash in between leaves both,
and the next pass deletes what is `covered`.
"""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from control.backups import objects
from control.backups.builder import Builder
from control.backups.objects import MERGED, SHIPMENT, SNAPSHOT, BackupFile
from control.problems import ProblemError
from control.protocol import faults, ltx
from control.storage.bucket_owner import Ownership
from control.storage.object_store import Store, WriteConflict

MINUTE_MS: Final = 60_000
MOST: Final = 1000
"""Files that become one at most."""
LARGE: Final = 16 * 1024 * 1024
"""Bytes of a shipment that is left as it is: there are few of these, and merging would read them in vain."""
AT_ONCE: Final = 4
"""Merged files that are put concurrently."""
ONE_PIECE: Final = 5 * 1024**3
"""Bytes that S3 takes in one piece at most; a larger snapshot isn't made."""


def minutes(
    shipments: Iterable[BackupFile], made_ms: Mapping[BackupFile, int], cuts: Collection[int]
) -> list[list[BackupFile]]:
    """Return the shipments to merge, each list into one file: those of one minute that follow each other. `cuts` are
    transactions whose states must stay: a file ends with each of them."""
    ends = set(cuts)
    found: list[list[BackupFile]] = []
    for file in sorted(file for file in shipments if file.level == SHIPMENT and not file.whole):
        group = found[-1] if found else []
        follows = bool(group) and file.first == group[-1].last + 1 and group[-1].last not in ends
        same = bool(group) and made_ms[group[0]] // MINUTE_MS == made_ms[file] // MINUTE_MS
        if follows and same and len(group) < MOST:
            group.append(file)
        else:
            found.append([file])
    return [group for group in found if len(group) > 1]


def covered(files: Iterable[BackupFile], cuts: Collection[int]) -> dict[BackupFile, list[BackupFile]]:
    """Return the shipments that merged files have, by these: what a crash before their deletion left. A merged file
    with one of the `cuts` inside replaces nothing."""
    files = list(files)
    shipments = sorted(file for file in files if file.level == SHIPMENT and not file.whole)
    found = {}
    for one in sorted(file for file in files if file.level == MERGED):
        inside = [file for file in shipments if one.first <= file.first and file.last <= one.last]
        if inside and not any(one.first <= cut < one.last for cut in cuts):
            found[one] = inside
    return found


class Merger:
    """Merges and deletes files of lineages, in folders that are gone afterwards.

    Raises, in every method: ProblemError backup_damaged, when files can't be read; backup_incomplete, when they were
    deleted meanwhile; spool_full; deletions_held; and as `Store` does.
    """

    def __init__(self, store: Store, builder: Builder, ownership: Ownership, folder: Path) -> None:
        self._store = store
        self._builder = builder
        self._ownership = ownership
        self._folder = folder

    async def merge(self, node: str, lineage: str, shipments: Sequence[BackupFile], cuts: Collection[int]) -> int:
        """Merge shipments into a file a minute, and delete them; return how many files were made."""
        await self._ownership.may_delete()
        with tempfile.TemporaryDirectory(prefix="skerry-merge-", dir=self._folder) as made:
            folder = Path(made)
            await self._builder.fetch(folder, node, lineage, shipments)
            groups = minutes(shipments, {file: _made_ms(folder, file) for file in shipments}, cuts)
            wanted = [BackupFile(MERGED, group[0].first, group[-1].last) for group in groups]
            if not groups:
                return 0
            paths = await self._builder.merged(folder, wanted)
            places = asyncio.Semaphore(AT_ONCE)

            async def replace(group: list[BackupFile], file: BackupFile, path: Path) -> None:
                async with places:
                    size = await asyncio.to_thread(os.path.getsize, path)
                    await self._put(node, lineage, file._replace(size=size), path)
                    faults.reach("control.backup.merged")
                    await self.delete(node, lineage, group)

            try:
                async with asyncio.TaskGroup() as tasks:
                    for group, file, path in zip(groups, wanted, paths, strict=True):
                        tasks.create_task(replace(group, file, path))
            except* ProblemError as failed:
                raise failed.exceptions[0] from None
        return len(wanted)

    async def finish(self, node: str, lineage: str, left: Mapping[BackupFile, list[BackupFile]]) -> None:
        """Delete shipments that merged files have, once these are verified."""
        for merged, shipments in left.items():
            await self._verify(node, lineage, merged)
            await self.delete(node, lineage, shipments)

    async def snapshot(self, node: str, lineage: str, folder: Path, last: int) -> BackupFile | None:
        """Put a snapshot of the files in a folder at the store, which lead to transaction `last`; return it, or None if
        it is too large for the store. Nothing is deleted: the states inside it stay for the retention."""
        file = BackupFile(SNAPSHOT, 1, last)
        [path] = await self._builder.merged(folder, [file])
        file = file._replace(size=await asyncio.to_thread(os.path.getsize, path))
        if file.size > ONE_PIECE:
            return None
        await self._put(node, lineage, file, path)
        return file

    async def sweep(self, node: str, lineage: str, needed: BackupFile | None, unneeded: Sequence[BackupFile]) -> None:
        """Delete files without which each state from the snapshot `needed` on is still there, once that is verified;
        None where nothing of the lineage is needed."""
        if unneeded and needed is not None:
            await self._verify(node, lineage, needed)
        await self.delete(node, lineage, unneeded)

    async def delete(self, node: str, lineage: str, files: Iterable[BackupFile]) -> None:
        """Delete files; those that aren't there any more are no error."""
        for file in files:
            await self._ownership.may_delete()
            await self._store.delete(objects.key(node, lineage, file))
            faults.reach("control.backup.deleted")

    async def _put(self, node: str, lineage: str, file: BackupFile, path: Path) -> None:
        """Put a file at the store, and check that the store has it."""
        key = objects.key(node, lineage, file)
        # One that is there already has the same pages: another replica, or a pass that was cut off, put it.
        with path.open("rb") as opened, suppress(WriteConflict):
            await self._store.put_new(key, opened)
        digest = await asyncio.to_thread(_digest, path, "md5")
        size, tag = await self._store.tagged(key) or (0, "")
        if (size, tag.strip('"')) == (file.size, digest):
            return
        # The store's tag is no MD5, or another version of the compression made the file.
        await self._verify(node, lineage, file._replace(size=size), path)

    async def _verify(self, node: str, lineage: str, file: BackupFile, same: Path | None = None) -> None:
        """Read a file at the store to its end, and check that it is whole, and has the pages of the file `same`.

        Raises: ProblemError backup_damaged, when it isn't.
        """
        with tempfile.TemporaryDirectory(prefix="skerry-verify-", dir=self._folder) as made:
            folder = Path(made)
            await self._builder.fetch(folder, node, lineage, [file])
            # What reads it writes it anew, with this machine's compression.
            [path] = await self._builder.merged(folder, [file])
            if same is not None and not await asyncio.to_thread(_equal, path, same):
                text = f"the store has another file {file.name} than was merged; nothing that it has is deleted"
                raise ProblemError("backup_damaged", text)


def _digest(path: Path, kind: str) -> str:
    """Return a file's digest in hexadecimal; MD5 as the store's tags have it."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _equal(one: Path, other: Path) -> bool:
    return _digest(one, "sha256") == _digest(other, "sha256")


def _made_ms(folder: Path, file: BackupFile) -> int:
    """Return when a downloaded file was made (Unix milliseconds). Raises: ProblemError backup_damaged."""
    try:
        with (folder / ltx.name(file.first, file.last)).open("rb") as opened:
            return ltx.read_header(opened).at_ms
    except ltx.LtxError as error:
        raise ProblemError("backup_damaged", f"the file {file.name} can't be read: {error}") from None
