"""Which files of a lineage lead to a transaction, and which transaction was the last at a time. Pure.

A state of the database is a snapshot and files that follow it without a gap. It is there at the end of a file only:
inside a file that was merged there are no states any more. Files may overlap, since a file has whole pages as of its
end: a node whose upload had no answer merges it with those after it, and puts them together.
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
    later = sorted((file for file in fitting if file.last > start.last), key=lambda file: file.first)
    found, best, at = [start], start, 0
    while found[-1].last < aim:
        reached = found[-1].last
        while at < len(later) and later[at].first <= reached + 1:
            # Of those with the same transactions, the one of the higher level: the other one may be deleted now.
            best = max(best, later[at], key=lambda file: (file.last, file.level, -file.first))
            at += 1
        if best.last <= reached:
            raise _missing(files, reached, aim)
        found.append(best)
    return found


def restorable(files: Iterable[BackupFile]) -> list[BackupFile]:
    """Return a file for each transaction to which `chain` finds a way, which that file ends with, in their order."""
    # The widest one of those with the same end needs the least before it.
    widest = {file.last: file for file in sorted(files, key=lambda file: (-file.first, file.level))}
    found: list[BackupFile] = []
    for last in sorted(widest):
        file = widest[last]
        if file.whole or (found and file.first <= found[-1].last + 1):
            found.append(file)
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


def _missing(files: Sequence[BackupFile], reached: int, aim: int) -> ChainError:
    """Return why no files lead to a transaction, but only to one before it."""
    across = min((file for file in files if file.first <= reached + 1 and file.last > aim), default=None)
    if across is not None:
        text = f"transaction {aim} is inside a file of transactions {across.first} to {across.last}"
        return ChainError(f"{text}: only {reached} and {across.last} can be brought back", reached)
    after = min((file.first for file in files if file.first > reached + 1), default=None)
    if after is None:
        return ChainError(f"what is at the store ends with transaction {reached}", reached)
    return ChainError(f"of transactions {reached + 1} to {after - 1} no file is at the store", reached)
