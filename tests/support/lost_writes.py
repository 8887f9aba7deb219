"""What a node's disk that is lost takes with it: acknowledged writes that the store doesn't have, moment by moment.

A table gets rows 1, 2, … one after the other; each has the time at which it was acknowledged. Meanwhile the store is
looked at again and again. Afterwards each look says what a restore of that moment would have lacked.
"""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from control.backups import objects
from control.backups.objects import SHIPMENT, SNAPSHOT, BackupFile
from control.protocol import ltx
from control.storage.object_store import Store


@dataclass(frozen=True)
class Look:
    """What the store had at a moment (Unix seconds), before it was asked."""

    at: float
    files: frozenset[BackupFile]


async def look(store: Store, node: str, lineage: str) -> Look:
    """Look at what the store has of a history."""
    at, found = time.time(), set[BackupFile]()
    async for page in store.under(objects.prefix(node, lineage)):
        found.update(objects.files_of(((item.key, item.size) for item in page), node, lineage))
    return Look(at, frozenset(found))


async def write_and_look(
    write: Callable[[int], Awaitable[None]], looking: Callable[[], Awaitable[Look]], seconds: float, pause: float
) -> tuple[list[float], list[Look]]:
    """Write rows one after the other for some seconds, and look every `pause` seconds meanwhile; return when each row
    was acknowledged, and the looks."""
    acknowledged, looks, end = list[float](), list[Look](), time.monotonic() + seconds

    async def writes() -> None:
        while time.monotonic() < end:
            await write(len(acknowledged) + 1)
            acknowledged.append(time.time())

    async def seen() -> None:
        while time.monotonic() < end:
            looks.append(await looking())
            await asyncio.sleep(pause)

    await asyncio.gather(writes(), seen())
    return acknowledged, looks


def reached(files: Iterable[BackupFile]) -> int:
    """Return the transaction that these files come to without a gap; 0 if there is no snapshot."""
    known = list(files)
    last = max((file.last for file in known if file.level == SNAPSHOT), default=0)
    for file in sorted((file for file in known if file.level == SHIPMENT), key=lambda file: file.first):
        if last and file.first <= last + 1:
            last = max(last, file.last)
    return last


def rows_by_transaction(files: dict[BackupFile, bytes], folder: Path, table: str) -> dict[int, int]:
    """Return how many rows the table has after each transaction at which a file ends."""
    path, found = folder / "built.db", dict[int, int]()
    path.touch()
    for file in sorted(files, key=lambda file: file.last):
        part = folder / "file.ltx"
        part.write_bytes(files[file])
        with part.open("rb") as opened, path.open("r+b") as target:
            ltx.apply(ltx.Reader(opened), target)
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
            try:
                (found[file.last],) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            except sqlite3.OperationalError:
                found[file.last] = 0  # the table is made later
    return found


def lost(acknowledged: Sequence[float], looks: Iterable[Look], rows: dict[int, int]) -> list[float]:
    """Return for each look how many seconds of acknowledged writes a disk that is lost then would take with it."""
    found = []
    for each in looks:
        had = rows.get(reached(each.files), 0)
        missing = acknowledged[had] if had < len(acknowledged) else each.at
        found.append(max(0.0, each.at - missing))
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of the values isn't above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
