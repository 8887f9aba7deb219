"""An orderly end that takes some seconds, and that further signals must not interrupt."""

import asyncio
import signal
from typing import Any

from control.cli.support import output


class EndOnce:
    """Has a command end in order at the first signal; further ones are answered once."""

    def __init__(self, running: asyncio.Task[Any]) -> None:
        self._running = running
        self._times = 0

    def asked(self) -> None:
        self._times += 1
        if self._times == 1:
            self._running.cancel()
        elif self._times == 2:
            output.note("everything is ending already: what takes longer than some seconds is killed")


def end_once() -> None:
    """Have the command that calls this end so at SIGINT (Ctrl-C), SIGTERM and SIGHUP."""
    running = asyncio.current_task()
    assert running is not None  # noqa: S101
    end = EndOnce(running)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end.asked)
