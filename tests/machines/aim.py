"""Freezes a node's processes in the middle of something, for a power cut there; prints what that is. Runs in the box.

    aim.py anywhere | checkpoint | POINT

POINT is one of a release's fault points (control/protocol/faults.py), at which the node is held. `commit` is the middle
of the COMMIT that makes a release, `anywhere` is at once.
"""

import mmap
import random
import struct
import sys
import time
from pathlib import Path

GROUP = Path("/sys/fs/cgroup/system.slice/skerry-edge.service")
INDEX = Path("/var/lib/skerry-edge/db/skerry.db-shm")
FAULTS = Path("/run/faults")
BACKFILLED, ATTEMPTED = 96, 128
"""Where the index of the log has how many frames are moved into the database file, and how many are about to be."""
COMMIT = "edge.commit"
PATIENCE = 120.0


def freeze() -> None:
    (GROUP / "cgroup.freeze").write_text("1")
    while "frozen 1" not in (GROUP / "cgroup.events").read_text():
        pass


def in_a_checkpoint() -> str:
    """Freeze while a checkpoint moves frames."""
    with INDEX.open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as index:

        def moves() -> bool:
            moved, about = (struct.unpack_from("=I", index, at)[0] for at in (BACKFILLED, ATTEMPTED))
            return bool(about > moved)

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if not moves():
                continue
            freeze()
            if moves():
                return "checkpoint"
            # It was over before.
            (GROUP / "cgroup.freeze").write_text("0")
    sys.exit("there was no checkpoint")


def held_at(point: str) -> None:
    end = time.monotonic() + PATIENCE
    while not (FAULTS / f"{point}.held").exists():
        if time.monotonic() > end:
            sys.exit(f"nothing came to {point}")
        time.sleep(0.001)


def in_a_commit() -> str:
    """Freeze while a release's COMMIT runs, or where that was over before, right after it."""
    held_at(f"{COMMIT}.before")
    (FAULTS / f"{COMMIT}.before.held").unlink()
    time.sleep(random.uniform(0.0, 0.008))
    freeze()
    return f"{COMMIT}.after" if (FAULTS / f"{COMMIT}.after.held").exists() else "commit"


def main(aim: str) -> str:
    match aim:
        case "anywhere":
            freeze()
        case "checkpoint":
            return in_a_checkpoint()
        case "commit":
            return in_a_commit()
        case point:
            held_at(point)
            freeze()
    return aim


if __name__ == "__main__":
    print(main(sys.argv[1]))
