"""The power fails while a database is shipped: of everything that was written, a state of the disk is built for many
moments and choices of what wasn't synced yet. From each the backup goes on, and has all that the database has.

The time of the database file, by which a history knows that nothing was moved meanwhile, is always what it was: a disk
may have the pages and not yet the time. SKERRY_TEST_CUTS says how many states, SKERRY_TEST_SEED repeats them.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from edge_runtime import wal
from edge_runtime.backup.local_files import LocalFiles, identity
from tests.support import power
from tests.support.shipping import World, notes

CUTS = int(os.environ.get("SKERRY_TEST_CUTS", "15"))
SEED = int(os.environ.get("SKERRY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
ACTS = ("insert", "insert", "insert", "ship", "passive", "restart", "truncate", "killed", "crash")
_FOLDERS = """
import os, sys
from pathlib import Path
from edge_runtime import files
for name in ("db", "backup"):
    files.make_folder(Path(sys.argv[1], name))
"""


class Life(NamedTuple):
    """What was done with a database, and what of its backup came to the store."""

    root: Path
    records: list[power.Record]
    stored: dict[str, bytes]
    """Contents by `LINEAGE/LEVEL/NAME`."""
    at: dict[int, int]
    """How many notes there were at each transaction that was told."""


def live(folder: Path, chance: random.Random) -> Life:
    root = folder / "state"
    root.mkdir()
    recorder = power.Recorder(root, folder / "log", power.shared_library())
    environment = dict(recorder.environment())
    subprocess.run([sys.executable, "-c", _FOLDERS, root], check=True, env={**os.environ, **environment})
    world = World(folder, environment)
    written, stored, at = 0, dict[str, bytes](), dict[int, int]()
    recorder.answered("written 0")
    try:
        for _ in range(90):
            match chance.choice(ACTS):
                case "insert":
                    world.writer.insert(written + 1)
                    written += 1
                    recorder.answered(f"written {written}")
                case "ship":
                    found = world.shipper.ship()
                    if found.whole:
                        at[found.last] = written
                    for one in world.local.waiting():
                        name = f"{one.lineage}/{one.level}/{one.path.name}"
                        if name not in stored:
                            stored[name] = one.path.read_bytes()
                            recorder.answered(f"stored {name}")
                case "killed":
                    world.shipper.kill()
                    world.start()
                case "crash":
                    world.end()
                    world.recover()
                    world.start_writer()
                    world.start()
                case mode:
                    world.shipper.checkpoint(mode)
    finally:
        world.end()
    return Life(root, recorder.read(), stored, at)


def on_the_same_disk(state: Path) -> None:
    """Have the database file be the one that the history is of, and its time as if nothing had been written since."""
    local = LocalFiles(state)
    history = local.lineage()
    if history is not None:
        database = state / wal.FILE
        moved = identity(database) if history.moved[1:2] == [database.stat().st_size] else []
        local.write(msgspec.structs.replace(history, inode=database.stat().st_ino, moved=moved))


@pytest.mark.timeout(3600)
def test_the_backup_has_what_the_database_has_after_a_loss_of_power(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    (tmp_path / "life").mkdir()
    life = live(tmp_path / "life", chance)
    first = next(at for at, record in enumerate(life.records) if record.kind == "A")
    cuts = sorted(chance.randrange(first + 1, len(life.records) + 1) for _ in range(CUTS))
    disk, played, snapshots = power.Disk(life.root), 0, 0
    for number, cut in enumerate(cuts):
        for record in life.records[played:cut]:
            if record.kind != "A":
                disk.play(record)
        played = cut
        folder = tmp_path / f"cut{number}"
        (folder / "state").mkdir(parents=True)
        disk.write(folder / "state", chance)
        told = [record.data.decode() for record in life.records[:cut] if record.kind == "A"]
        try:
            snapshots += after(folder, life, told)
        except BaseException:
            print(f"cut {cut} of {len(life.records)}, after {told[-3:]}")
            raise
        shutil.rmtree(folder)
    print(f"{snapshots} snapshots after {CUTS} cuts")


def after(folder: Path, life: Life, told: list[str]) -> bool:
    """Go on from a state, and compare; return whether a snapshot was needed."""
    acknowledged = max(int(text.partition(" ")[2]) for text in told if text.startswith("written "))
    world = World(folder, runs=False)
    wal.index_of(world.database).unlink(missing_ok=True)
    on_the_same_disk(world.state)
    names = [text.partition(" ")[2] for text in told if text.startswith("stored ")]
    for name in names:
        lineage, level, file = name.split("/")
        there = world.replica(lineage) / "ltx" / level / file
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(life.stored[name])
    before = {name.split("/")[0] for name in names}
    world.recover()
    world.start_writer()
    world.start()
    try:
        world.upload()
        found = world.shipper.ship()
        assert found.whole
        assert not before or found.lineage in before
        restored = world.restored()
    finally:
        world.end()
    copy = folder / "copy.db"
    shutil.copyfile(world.database, copy)
    if wal.has_log(world.database):
        shutil.copyfile(wal.log_of(world.database), wal.log_of(copy))
    assert restored == notes(copy)
    # What was being committed is there or isn't.
    assert restored in (list(range(1, acknowledged + 1)), list(range(1, acknowledged + 2)))
    newest = max((int(name[-20:-4], 16) for name in names), default=0)
    for last in [last for last in life.at if last <= newest][-1:]:
        assert world.restore(last) == list(range(1, life.at[last] + 1))
    return bool(found.error)
