"""Which files of a lineage nobody needs any more. Pure.

A file is kept while a state that it leads to may be asked for: those of the retention, and the latest one always.
"""

from collections.abc import Iterable, Mapping

from control.backups.objects import BackupFile


def unneeded(files: Iterable[BackupFile], made_ms: Mapping[BackupFile, int], since_ms: int) -> list[BackupFile]:
    """Return the files without which each state from a time on is still there.

    `made_ms` has the `at_ms` of snapshots, and of others as far as they are known; a file without one counts as new.
    `since_ms` is the beginning of the retention (Unix milliseconds). The oldest snapshot that states of the retention
    need stays, which is the newest one of before, and so does the newest snapshot, whatever its age.
    """
    files = list(files)
    old = [file for file in files if file.whole and made_ms.get(file, since_ms + 1) <= since_ms]
    # Where clocks went back, a later snapshot may say an earlier time: what counts is the order of transactions.
    needed = max((file.last for file in old), default=0)
    return sorted(file for file in files if file.last < needed or (file.last == needed and not file.whole))


def after_the_end(files: Iterable[BackupFile], ended_ms: int, since_ms: int) -> list[BackupFile]:
    """Return what isn't needed of a lineage that ended: all of it, once the retention began after its end."""
    return sorted(files) if ended_ms < since_ms else []
