"""Fault points: named steps at which a test can kill or hold a process. Without SKERRY_FAULTS they do nothing.

SKERRY_FAULTS is a folder. `reach("sync.commit.before")` looks there for a file of that name, deletes it, and writes
`NAME.held` with its process id. If the file says `kill`, the process then kills itself; if it says `hold`, the process
waits until `NAME.held` is deleted. The first process that reaches the point takes the file. Without SKERRY_FAULTS a
point costs one check of a variable.
"""

import os
import signal
import time
from pathlib import Path

_FOLDER = os.environ.get("SKERRY_FAULTS")


def folder() -> Path | None:
    """Return the folder of the fault points, or None; a process that has fault points must be able to write there."""
    return None if _FOLDER is None else Path(_FOLDER)


def reach(point: str) -> None:
    """Reach `point`: return at once, later, or never."""
    if _FOLDER is None:
        return
    armed = Path(_FOLDER, point)
    held = armed.with_name(point + ".held")
    mine = armed.with_name(f"{point}.{os.getpid()}")
    try:
        action = armed.read_text().strip()
        if not action:
            # The test that arms it hasn't written to it yet.
            return
        mine.write_text(f"{os.getpid()}\n")
        armed.unlink()
        # Renamed once it contains the id, so that no reader finds it empty.
        mine.rename(held)
    except FileNotFoundError:
        mine.unlink(missing_ok=True)
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while held.exists():
        time.sleep(0.005)
