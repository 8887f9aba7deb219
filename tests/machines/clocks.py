"""Clocks of a box that are wrong, each for the processes of one user: a box has this machine's own clock."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.packages.machine import Machine

FOLDER = "/etc/box-clocks"
LIBRARY = "/usr/lib/box-clock.so"
WITHOUT_A_BATTERY = datetime(2000, 1, 1, tzinfo=UTC)


class Clocks:
    """The clocks of some users. What is to have one is started after this."""

    def __init__(self, machine: Machine, users: tuple[str, ...]) -> None:
        self._machine = machine
        self._users = users

    def set(self, user: str, now: datetime | None = None) -> None:
        """Set a user's clock, also that of what runs; without a time it is right."""
        more = 0 if now is None else round(now.timestamp() - time.time())
        # Into the file that is mapped: one of no bytes would end those that look.
        write = f"import sys; open(sys.argv[1], 'r+b').write(({more}).to_bytes(8, 'little', signed=True))"
        self._machine.run("python3", "-c", write, f"{FOLDER}/{self._number(user)}")

    def _number(self, user: str) -> str:
        return self._machine.run("id", "--user", user).strip()


@contextmanager
def clocks_of(machine: Machine, *users: str, folder: Path) -> Iterator[Clocks]:
    """Give these users clocks of their own, which are right until they are set."""
    built, source = folder / "box-clock.so", Path(__file__).with_name("box_clock.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", built, source], check=True)
    machine.put(built, LIBRARY)
    clocks = Clocks(machine, users)
    machine.shell(f"chmod 0644 {LIBRARY}; mkdir {FOLDER}; chmod 0755 {FOLDER}")
    for user in users:
        machine.shell(f"head --bytes=8 /dev/zero >{FOLDER}/$(id --user {user}); chmod 0644 {FOLDER}/*")
    machine.write("/etc/ld.so.preload", f"{LIBRARY}\n")
    try:
        machine.shell("chmod 0644 /etc/ld.so.preload")
        yield clocks
    finally:
        machine.shell(f"rm -r /etc/ld.so.preload {FOLDER}")
