"""Which files of a lineage lead to a transaction, and which transaction was the last at a time. Pure.

A state of the database is a snapshot and files that follow it, each from the transaction after the one before it. It is
there at the end of a file only: inside a file that was merged there are no states any more.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from control.backups.objects import BackupFile


class ChainError(Exception):
    """No files lead to the transaction; the message says which are missing."""

    def __init__(self, message: str, reached: int) -> None:
        super().__init__(message)
        self.reached = reached
        """The last transaction before it to which files lead; 0 if there is none."""


def chain(files: Iterable[BackupFile], to: int | None = None) -> list[BackupFile]:
    """Return the files that lead to transaction `to`, or to the lineage's latest one: the newest snapshot that isn't
    newer, and as few files as possible after it.

    Raises: ChainError, naming the gap.
    """
    files = list(files)
    aim = max((file.last for file in files), default=0) if to is None else to
    fitting = [file for file in files if file.last <= aim]
    start = max((file for file in fitting if file.whole), key=lambda file: (file.last, file.level), default=None)
    if start is None:
        raise ChainError(f"no snapshot up to transaction {aim} is at the store", 0)
    ways = _ways([start, *(file for file in fitting if file.first > start.last)])
    if aim not in ways:
        raise _missing(files, ways, aim)
    found = []
    at = aim
    while at > 0:
        file = ways[at][1]
        found.append(file)
        at = file.first - 1
    return found[::-1]


def restorable(files: Iterable[BackupFile]) -> list[BackupFile]:
    """Return a file for each transaction to which `chain` finds a way, which that file ends with, in their order."""
    files = sorted(files, key=lambda file: (file.last, file.level))
    snapshots = {file.last: file for file in files if file.whole}
    begins = sorted(snapshots)
    found: list[BackupFile] = []
    for at, end in zip(begins, [*begins, None][1:], strict=True):
        within = [file for file in files if file.first > at and (end is None or file.last < end)]
        ways = _ways([snapshots[at], *within])
        found += (ways[last][1] for last in sorted(ways))
    return found


async def last_at(
    ends: Sequence[BackupFile], at_ms: int, made_ms: Callable[[BackupFile], Awaitable[int]]
) -> BackupFile | None:
    """Return the last of `ends`, which `restorable` has returned, that was made at a time or before; None if all are
    later. `made_ms` returns a file's `at_ms` (both in Unix milliseconds), and is asked about few files.
    """
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        if await made_ms(ends[middle]) <= at_ms:
            low = middle + 1
        else:
            high = middle
    return ends[low - 1] if low else None


def _ways(files: Iterable[BackupFile]) -> dict[int, tuple[int, BackupFile]]:
    """Return, for each transaction to which files lead from the whole ones among them, how many files lead there and
    the last of these."""
    ways: dict[int, tuple[int, BackupFile]] = {}
    # What leads to the beginning of a file ends before it, so it comes earlier in this order.
    for file in sorted(files, key=lambda file: (file.first, file.last, -file.level)):
        before = (0, file) if file.whole else ways.get(file.first - 1)
        if before is not None and (file.last not in ways or before[0] + 1 < ways[file.last][0]):
            ways[file.last] = before[0] + 1, file
    return ways


def _missing(files: Sequence[BackupFile], ways: Iterable[int], aim: int) -> ChainError:
    """Return why no files lead to a transaction."""
    reached = max(ways)
    across = min((file for file in files if file.first == reached + 1 and file.last > aim), default=None)
    if across is not None:
        text = f"transaction {aim} is inside a file of transactions {across.first} to {across.last}"
        return ChainError(f"{text}: only {reached} and {across.last} can be brought back", reached)
    after = min((file.first for file in files if file.first > reached + 1), default=None)
    if after is None:
        return ChainError(f"what is at the store ends with transaction {reached}", reached)
    return ChainError(f"of transactions {reached + 1} to {after - 1} no file is at the store", reached)
