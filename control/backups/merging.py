"""Merges what nodes ship: shipments older than an hour into a file a minute, and all that into a snapshot a day.

A restore of a year of shipments would read millions of files. Which files are merged is decided without I/O
(`minutes`, `snapshot_due`). A merged file is at the store before one of those that it was made of is deleted, so that a
restore finds a chain at each moment; a crash in between leaves both, and the next pass deletes what is `covered`.
"""

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from control.backups import objects
from control.backups.builder import Builder
from control.backups.chain import ChainError, chain
from control.backups.objects import MERGED, SHIPMENT, SNAPSHOT, BackupFile
from control.storage.object_store import Store, WriteConflict

HOUR_MS: Final = 3_600_000
MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000
MOST: Final = 1000
"""Files that become one at most."""


def minutes(
    files: Iterable[BackupFile], made_ms: Mapping[BackupFile, int], now_ms: int, cuts: Collection[int]
) -> list[list[BackupFile]]:
    """Return the shipments to merge, each list into one file: those of one minute that follow each other and are older
    than an hour. `cuts` are transactions whose states must stay: a file ends with each of them, and with each snapshot.
    """
    files = list(files)
    ends = {*cuts, *(file.last for file in files if file.whole)}
    known = {file for file in files if file.level == SHIPMENT and not file.whole and file in made_ms}
    due = sorted(file for file in known if made_ms[file] <= now_ms - HOUR_MS)
    found: list[list[BackupFile]] = []
    for file in due:
        group = found[-1] if found else []
        follows = bool(group) and file.first == group[-1].last + 1 and group[-1].last not in ends
        same = bool(group) and made_ms[group[0]] // MINUTE_MS == made_ms[file] // MINUTE_MS
        if follows and same and len(group) < MOST:
            group.append(file)
        else:
            found.append([file])
    return [group for group in found if len(group) > 1]


def covered(files: Iterable[BackupFile]) -> list[BackupFile]:
    """Return the shipments that a merged file has, all of them or alone: what a crash before their deletion left."""
    files = list(files)
    merged = sorted((file for file in files if file.level == MERGED), key=lambda file: file.first)
    found = []
    for file in files:
        if file.level == SHIPMENT and not file.whole:
            found += [file for one in merged if one.first <= file.first and file.last <= one.last][:1]
    return sorted(found)


def snapshot_due(files: Iterable[BackupFile], made_ms: Mapping[BackupFile, int], now_ms: int) -> list[BackupFile]:
    """Return the files to merge into a snapshot, empty if none is due: when the newest one is older than a day, and
    files older than an hour follow it. The new one ends with the last of those."""
    files = list(files)
    newest = max((file for file in files if file.whole), key=lambda file: file.last, default=None)
    if newest is None or made_ms.get(newest, now_ms) > now_ms - DAY_MS:
        return []
    later = [file for file in files if file.first > newest.last and made_ms.get(file, now_ms) <= now_ms - HOUR_MS]
    for to in sorted({file.last for file in later}, reverse=True):
        with contextlib.suppress(ChainError):
            return chain(files, to)
    return []


class Merger:
    """Merges files of lineages, in folders that are gone afterwards."""

    def __init__(self, store: Store, builder: Builder, folder: Path) -> None:
        self._store = store
        self._builder = builder
        self._folder = folder

    async def _merge(self, node: str, lineage: str, files: Sequence[BackupFile], level: int) -> BackupFile:
        """Put one file of this level at the store that has what `files` have, which stay there.

        Raises: ProblemError, as `Builder.merged` and `Store` do.
        """
        with tempfile.TemporaryDirectory(prefix="skerry-merge-", dir=self._folder) as folder:
            path = await self._builder.merged(Path(folder), node, lineage, list(files))
            with path.open("rb") as file:
                merged = BackupFile(level, files[0].first, files[-1].last, os.fstat(file.fileno()).st_size)
                # One that is there already has the same pages: another replica, or a pass that was cut off, put it.
                with contextlib.suppress(WriteConflict):
                    await self._store.put_new(objects.key(node, lineage, merged), file)
        return merged

    async def replace(self, node: str, lineage: str, files: Sequence[BackupFile]) -> BackupFile:
        """Merge shipments into one file of level 1, and delete them once that is at the store."""
        merged = await self._merge(node, lineage, files, MERGED)
        await self.delete(node, lineage, files)
        return merged

    async def snapshot(self, node: str, lineage: str, files: Sequence[BackupFile]) -> BackupFile:
        """Merge a chain into a snapshot. Nothing is deleted: the states inside it stay for the retention."""
        return await self._merge(node, lineage, files, SNAPSHOT)

    async def delete(self, node: str, lineage: str, files: Iterable[BackupFile]) -> None:
        """Delete files; those that aren't there any more are no error."""
        for file in files:
            await self._store.delete(objects.key(node, lineage, file))
