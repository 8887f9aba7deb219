"""A program of ours under a supervisor that starts it again whenever it has ended, as systemd does."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from control.local.process import Service
from tests.support.environment import without_settings

RESTART_PAUSE = 0.1
"""As systemd's RestartSec."""


class Supervised:
    """A program that is started again whenever it has ended, as systemd does it."""

    def __init__(self, name: str, arguments: list[str], settings: dict[str, str], folder: Path, lock: int) -> None:
        self.log = folder / f"{name}.log"
        self.pid = 0
        """0 while it isn't running."""
        self.starts = 0
        self.ends: list[int] = []
        """The status of each end: minus the signal, where it was one."""
        self.wanted = asyncio.Event()
        """While it isn't set, an ended program stays away."""
        self.wanted.set()
        self._arguments = arguments
        kept = without_settings()
        self.environment = {**kept, "PYTHONUNBUFFERED": "1", **settings}
        """Environment variables of the next start."""
        self._folder = folder
        self._service = Service(name, self.log, lock)

    async def run(self) -> None:
        """Until cancelled, which ends the program in order."""
        while True:
            await self.wanted.wait()
            command = [sys.executable, "-m", *self._arguments]
            process = self._service.spawn(command, cwd=self._folder, env=self.environment)
            self.pid = process.pid
            self.starts += 1
            try:
                while process.poll() is None:
                    await asyncio.sleep(0.005)
            finally:
                self.pid = 0
                if process.poll() is None:
                    process.terminate()
                    try:
                        await asyncio.to_thread(process.wait, 60)
                    finally:
                        process.kill()
                        process.wait()
            self.ends.append(process.returncode)
            await asyncio.sleep(RESTART_PAUSE)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Kill the program, if it runs; the supervisor starts it again. With SIGTERM it ends in order."""
        if self.pid:
            os.kill(self.pid, how)
