"""Notifies systemd about a service (sd_notify): that it is still starting, that it is up, that it works.

Control and the edge share this. A program that systemd didn't start notifies nobody.
"""

import contextlib
import os
import socket
from collections.abc import MutableMapping

PERIOD = 10.0
"""The most seconds between two notifications."""
PATIENCE = 60.0
"""Seconds within which systemd should expect the next notification while the service is starting."""


class ServiceManager:
    """The service manager that started this process, if any."""

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        """Notify the manager at the socket `address`; '' if there is none.

        `watchdog`: seconds within which the manager expects to hear that the service works; 0 if it doesn't.
        """
        # A name that begins with @ is in the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.period = min(PERIOD, watchdog / 3) if watchdog else PERIOD

    def starting(self, seconds: float = PATIENCE) -> None:
        """Say that the service is still starting; the next notification comes within `seconds`."""
        self._tell(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def up(self) -> None:
        """Say that the service answers."""
        self._tell("READY=1")

    def works(self) -> None:
        """Say that the service still works; without this for a while, the manager kills and restarts it."""
        self._tell("WATCHDOG=1")

    def _tell(self, words: str) -> None:
        if self._address:
            # A manager that is gone or doesn't read is no reason to stop serving.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(words.encode(), self._address)


def taken(environment: MutableMapping[str, str]) -> ServiceManager:
    """Return the manager that systemd's variables name, and remove these, so that no child speaks for this process."""
    address, pid, watchdog = (environment.pop(f, "") for f in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"))
    mine = pid in ("", str(os.getpid())) and watchdog.isdigit()
    return ServiceManager(address, int(watchdog) / 1e6 if mine else 0.0)
