"""Fault points: named steps at which a test can kill or hold a process. Without SKERRY_FAULTS they do nothing.

SKERRY_FAULTS is a folder. `reach("sync.commit.before")` looks there for a file of that name, takes it away, and leaves
`NAME.held` with its process id: with the content `kill` it then kills its process, with `hold` it waits until that
file is gone. The first process that comes takes it. A point costs one look at a variable when it isn't set.
"""

import os
import signal
import time
from pathlib import Path

_FOLDER = os.environ.get("SKERRY_FAULTS")


def folder() -> Path | None:
    """Where the points are looked for: a process that is to have any must be able to write there."""
    return None if _FOLDER is None else Path(_FOLDER)


def reach(point: str) -> None:
    """Say that this process has reached `point`; may not return."""
    if _FOLDER is None:
        return
    armed = Path(_FOLDER, point)
    held = armed.with_name(point + ".held")
    mine = armed.with_name(f"{point}.{os.getpid()}")
    try:
        action = armed.read_text().strip()
        mine.write_text(f"{os.getpid()}\n")
        armed.unlink()
    except FileNotFoundError:
        mine.unlink(missing_ok=True)
        return
    # Never there without the id in it.
    mine.rename(held)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while held.exists():
        time.sleep(0.005)
