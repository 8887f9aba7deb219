"""Files that a running replica rereads: those that changed every few seconds, and all of them at SIGHUP."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from control.clock import Clock

PERIOD = 2.0
"""Seconds between two checks of the files."""

log = logging.getLogger("skerry.control")


class Reread(Protocol):
    """What is built from some files, as they were when they could last be used."""

    error: str
    """Why the files can't be used as they are now; '' if they can."""

    def look(self, *, anew: bool = False) -> bool:
        """Reread the files if they changed, or with `anew`; return whether something else is in use now."""
        ...


class RereadFiles:
    """Checks the files until cancelled."""

    def __init__(self, parts: Mapping[str, Reread], clock: Clock) -> None:
        """Check `parts`, which are given by their names in logs and metrics."""
        self.parts = parts
        self._clock = clock
        self._now = asyncio.Event()
        self.changed: list[Callable[[], None]] = []
        """Called in the loop when something else is in use."""

    def look_now(self) -> None:
        """Have all files reread at once."""
        self._now.set()

    def errors(self) -> list[str]:
        """Return a line for each part whose files can't be used as they are now."""
        return [
            f"{what}: {part.error}; what was read before stays in use"
            for what, part in self.parts.items()
            if part.error
        ]

    async def run(self) -> None:
        """Check every `PERIOD` seconds, and immediately after `look_now`."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with self._clock.timeout(PERIOD):
                    await self._now.wait()
            anew = self._now.is_set()
            self._now.clear()
            if anew:
                log.info("files that can change are read again: %s", ", ".join(self.parts))
            for what, part in self.parts.items():
                try:
                    # A disk that hangs must not block requests.
                    if await asyncio.to_thread(part.look, anew=anew):
                        for call in self.changed:
                            call()
                except Exception:
                    log.exception("the files of %s couldn't be looked at", what)


def stamp(path: Path) -> tuple[int, ...]:
    """Return numbers that differ once a file has changed; empty if there is no file.

    Links are followed, since tools that renew certificates replace links.
    """
    with contextlib.suppress(OSError):
        info = os.stat(path)
        # Two changes within one tick of the kernel's clock have the same time, so other fields are compared too.
        return (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size)
    return ()
