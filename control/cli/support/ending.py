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
    """Have the command that calls this end so at SIGINT (Ctrl-C), SIGTERM and SIGHUP.

    The handlers are the process's own, not the loop's: one that closes gives SIGINT back to Python, and a Ctrl-C that
    came then would make an interrupted command of one that has ended in order.
    """
    running = asyncio.current_task()
    assert running is not None  # noqa: S101
    loop, end = asyncio.get_running_loop(), EndOnce(running)

    def handle(number: int, frame: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(end.asked)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)
