"""The files of a project in development: which of them have changed, and waiting for the next change."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import watchfiles

from control.cli.project import script_modules
from control.cli.support.client import Failure

STEP = 20
"""Milliseconds without a further change after which changes count as one."""
BUILT = ("node_modules", "target", "zig-out", ".zig-cache")
"""Folders that builds write, besides hidden ones; changes in them aren't the author's."""
MADE = (".wasm", ".o", script_modules.TYPES)
"""How the names of files end that builds write."""

Seen = dict[Path, bytes]
"""The SHA-256 of each file, by path."""


class FollowedFiles:
    """A project's folders, and single files outside them, that an author edits."""

    def __init__(self, folders: Iterable[Path], beside: Iterable[Path] = ()) -> None:
        """`beside`: other files to follow, by content and mode; they needn't exist."""
        self._folders = list(folders)
        self._beside = [path.absolute() for path in beside]
        self._seen: Seen = {}
        self._changed = asyncio.Event()

    async def watch(self) -> None:
        """Notice changes until cancelled.

        Raises: Failure, when a folder doesn't exist or the system has no watches left for it.
        """
        ours = watchfiles.DefaultFilter(ignore_dirs=(*watchfiles.DefaultFilter.ignore_dirs, *BUILT))
        parents = {path.parent for path in self._beside if path.parent.is_dir()}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._notice(self._folders, ours, recursive=True))
                if parents:
                    named = {str(path) for path in self._beside}
                    group.create_task(self._notice(parents, lambda _, path: path in named, recursive=False))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _notice(
        self, folders: Collection[Path], counts: Callable[[watchfiles.Change, str], bool], *, recursive: bool
    ) -> None:
        try:
            async for _ in watchfiles.awatch(*folders, step=STEP, watch_filter=counts, recursive=recursive):
                self._changed.set()
        except (OSError, RuntimeError) as error:  # RuntimeError: those for which watchfiles has no class
            missing = [folder for folder in folders if not folder.exists()]
            limits = "raise the system's limits fs.inotify.max_user_watches and fs.inotify.max_user_instances (sysctl)"
            raise Failure(
                f"changes in {', '.join(map(str, missing or folders))} can't be noticed: {error}",
                cure="make the folder, or correct its path in the project's file" if missing else limits,
            ) from None

    async def different(self) -> set[Path]:
        """Return the files that were changed, added or removed since the last call; the first time, all of them."""
        self._changed.clear()
        now = await asyncio.to_thread(self._read)
        before, self._seen = self._seen, now
        return {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}

    async def changed(self) -> None:
        """Wait for a change since the last call of `different`."""
        await self._changed.wait()

    def _read(self) -> Seen:
        """Read the folders' files, except build output, and the files outside them."""
        found = {}
        for path, folders, names in (step for folder in self._folders for step in folder.walk()):
            folders[:] = [name for name in folders if not name.startswith(".") and name not in BUILT]
            for name in names:
                if not name.startswith(".") and not name.endswith(MADE):
                    with contextlib.suppress(OSError):
                        found[path / name] = hashlib.sha256((path / name).read_bytes()).digest()
        for path in self._beside:
            with contextlib.suppress(OSError):
                found[path] = hashlib.sha256(b"%o " % path.stat().st_mode + path.read_bytes()).digest()
        return found
