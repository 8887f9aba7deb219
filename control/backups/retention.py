"""Which files of a lineage nobody needs any more. Pure.

A file is kept while a state that it leads to may be asked for: those of the retention, and the latest one always.
"""

from collections.abc import Iterable, Mapping

from control.backups.objects import BackupFile


def oldest_needed(made_ms: Mapping[BackupFile, int], since_ms: int) -> BackupFile | None:
    """Return the oldest snapshot that states from `since_ms` on need (Unix milliseconds), by when each was made; None
    if that is the first one, whichever it is.

    It is the newest one that isn't younger: so the newest of all stays, whatever its age.
    """
    old = [file for file, at in made_ms.items() if file.whole and at <= since_ms]
    # Clocks may go back: what counts is the order of transactions.
    return max(old, key=lambda file: (file.last, file.level), default=None)


def unneeded(files: Iterable[BackupFile], oldest: BackupFile | None) -> list[BackupFile]:
    """Return the files without which each state from the snapshot `oldest` on is still there."""
    if oldest is None:
        return []
    return sorted(file for file in files if file.last <= oldest.last and file != oldest)
