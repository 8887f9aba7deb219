"""What systemd is told of a service (sd_notify): that its start goes on, that it is up, that it works.

Control and the edge have this in common. A program that systemd hasn't started tells nobody.
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping

PERIOD = 10.0
"""Seconds between two words at most."""
PATIENCE = 60.0
"""Seconds within which systemd is to expect the next word of a start that goes on."""


class ServiceManager:
    """The manager that has started this process, or none."""

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        """`address`: of its socket, '' where there is none. `watchdog`: seconds within which it wants to hear that the
        service works; 0 where it doesn't."""
        # A name that begins with @ is of no file.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.period = min(PERIOD, watchdog / 3) if watchdog else PERIOD

    def starting(self, seconds: float = PATIENCE) -> None:
        """Say that the start goes on; the next word comes within `seconds`."""
        self._tell(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def up(self) -> None:
        """Say that the service answers."""
        self._tell("READY=1")

    def works(self) -> None:
        """Say that the service still does its work; where this isn't said for a while, it is ended and started
        again."""
        self._tell("WATCHDOG=1")

    def _tell(self, words: str) -> None:
        if self._address:
            # A manager that is gone or doesn't read is no reason to serve no longer.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(words.encode(), self._address)


def taken(environment: MutableMapping[str, str]) -> ServiceManager:
    """Take the variables by which systemd says where it is told; they are removed, so that no child speaks for this
    process."""
    address, pid, watchdog = (environment.pop(f, "") for f in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"))
    mine = pid in ("", str(os.getpid())) and watchdog.isdigit()
    return ServiceManager(address, int(watchdog) / 1e6 if mine else 0.0)
