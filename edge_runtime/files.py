"""Files that survive a kill and a power failure: temporary file, fsync, rename, fsync of the folder."""

import os
from pathlib import Path
from typing import Final

DISK_RESERVE: Final = 16 * 1024 * 1024
"""Bytes of a node's disk that stay free, for the libsql database and the reports to control."""


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` in one step; nobody ever sees a part of it, or a secret with a wider mode."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Have the folder `path` (0700) and those that it lies in, each with its name on disk."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    except FileNotFoundError:
        make_folder(path.parent)
        make_folder(path)
        return
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove `path` for good; nothing happens if it isn't there."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
