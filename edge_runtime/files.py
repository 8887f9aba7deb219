"""Files that survive a kill and a power loss: temporary file, fsync, rename, fsync of the folder."""

import contextlib
import errno
import os
import stat
from pathlib import Path


class FileUnfit(Exception):
    """A file can't be used as it is; the message says why, without quoting its content."""


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` atomically, with `mode` from the start: nobody sees part of it, or can read a secret in it."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free on the folder's disk, for a user without privileges. Raises: OSError."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def make_folder(path: Path) -> None:
    """Make the folder `path` (mode 0700) and its parents, if missing; each name is on disk when this returns."""
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
    """Remove `path` durably; do nothing if it doesn't exist."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_private(path: Path, limit: int) -> bytes:
    """Return the content, at most `limit` bytes, of a file that only its owner may use.

    Raises: FileUnfit; FileNotFoundError.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileUnfit(f"{path} is a symbolic link: put the file itself there, or name the file") from None
        raise FileUnfit(f"{path} can't be opened: {error.strerror}") from None
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise FileUnfit(f"{path} is no regular file")
        if info.st_uid != os.geteuid():
            raise FileUnfit(f"{path} belongs to the user {info.st_uid}, and this node runs as {os.geteuid()}")
        if info.st_mode & 0o077:
            raise FileUnfit(
                f"others may use {path} (its mode is {stat.S_IMODE(info.st_mode):04o}): make it `chmod 600`, and "
                "change the values if others could have read them"
            )
        if info.st_size > limit:
            raise FileUnfit(f"{path} has {info.st_size} bytes; {limit} are allowed")
        return os.read(handle, limit)
    except OSError as error:
        raise FileUnfit(f"{path} can't be read: {error.strerror}") from None
    finally:
        os.close(handle)


def stamp(path: Path, *, follow_symlinks: bool = False) -> tuple[int, ...]:
    """Return numbers that differ once a file has changed; empty if there is no file."""
    with contextlib.suppress(OSError):
        info = os.stat(path, follow_symlinks=follow_symlinks)
        # Two changes within one tick of the kernel's clock have the same time, so other fields are compared too.
        return (info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_mode, info.st_uid)
    return ()
