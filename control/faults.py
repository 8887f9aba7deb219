"""Fault points: named steps at which a test can kill or hold a process. Without SKERRY_FAULTS they do nothing.

SKERRY_FAULTS is a folder. `reach("sync.commit.before")` looks there for a file of that name: with the content `kill`
the process kills itself once (the file is taken away first); with `hold` it renames it to `NAME.held` and waits
until that file is gone. A point costs one dictionary look-up when the variable isn't set.
"""

import os
import signal
import time
from pathlib import Path

_FOLDER = os.environ.get("SKERRY_FAULTS")


def reach(point: str) -> None:
    """Say that this process has reached `point`; may not return."""
    if _FOLDER is None:
        return
    armed = Path(_FOLDER, point)
    held = armed.with_name(point + ".held")
    try:
        action = armed.read_text().strip()
        armed.rename(held)
    except FileNotFoundError:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while held.exists():
        time.sleep(0.005)
