"""What ships the database is killed at each of its steps, alone or with all that have the file open.

Afterwards the backup has all that was acknowledged, at every transaction that it told, as `litestream restore` says;
what is at the store is never written again with another content. SKERRY_TEST_KILLS says how many rounds, and
SKERRY_TEST_SEED repeats them.
"""

import contextlib
import os
import random
import time
from pathlib import Path

import pytest

from tests.support.shipping import Killed, World, Writer, insertion

ROUNDS = int(os.environ.get("SKERRY_TEST_KILLS", "12"))
SEED = int(os.environ.get("SKERRY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
POINTS = (
    *("edge.backup.write", "edge.backup.sync", "edge.backup.rename", "edge.backup.count", "edge.backup.counted"),
    *("edge.backup.step.locked", "edge.backup.step.moved", "edge.backup.step.anew"),
)
ACTS = ("insert", "insert", "ship", "passive", "restart", "truncate")


class Kills:
    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.world = World(folder, {"SKERRY_FAULTS": str(self.faults)})
        self.chance = chance
        self.written = 0
        """Notes that are acknowledged: those with the numbers up to this one."""
        self.at: dict[tuple[str, int], int] = {}
        """How many there were at the transactions that were told."""

    def insert(self) -> None:
        self.world.writer.insert(self.written + 1)
        self.written += 1

    def ship(self) -> bool:
        """Raises: Killed."""
        found = self.world.shipper.ship()
        if found.whole:
            assert self.at.setdefault((found.lineage, found.last), self.written) == self.written
        return found.whole

    def act(self, act: str) -> None:
        """Raises: Killed."""
        match act:
            case "insert":
                self.insert()
            case "ship":
                self.ship()
            case mode:
                self.world.shipper.checkpoint(mode)

    def kill(self) -> str:
        """Kill the shipper at one of its steps, or at any time; return where."""
        point = self.chance.choice((*POINTS, ""))
        if point:
            (self.faults / point).write_text("kill")
        try:
            for turn in range(60):
                act = self.chance.choice(ACTS)
                if not point and turn > 4 and act in ("ship", "restart", "truncate"):
                    self.world.shipper.tell(act)
                    time.sleep(self.chance.uniform(0, 0.02))
                    break
                self.act(act)
        except Killed:
            pass
        (self.faults / point).unlink(missing_ok=True) if point else None
        self.world.shipper.kill()
        return point or "anywhere"

    def come_back(self) -> str:
        """Start again what was killed, after what may happen meanwhile; return what that was."""
        way = self.chance.choice(("at once", "writes", "stranger", "crash", "crash in a COMMIT", "crash in a recovery"))
        world = self.world
        match way:
            case "writes":
                for _ in range(self.chance.randrange(1, 5)):
                    self.insert()
            case "stranger":
                self.insert()
                stranger = Writer(world.database, patience=0.02)
                stranger.do(f"PRAGMA wal_checkpoint({self.chance.choice(('PASSIVE', 'RESTART', 'TRUNCATE'))})")
                stranger.kill()
                self.insert()
            case "crash" | "crash in a COMMIT" | "crash in a recovery":
                if way == "crash in a COMMIT":
                    world.writer.tell(insertion(self.written + 1))
                    time.sleep(self.chance.uniform(0, 0.003))
                world.writer.kill()
                if way == "crash in a recovery":
                    point = self.chance.choice(POINTS)
                    (self.faults / point).write_text("kill")
                    with contextlib.suppress(Killed):
                        world.recover()
                    (self.faults / point).unlink(missing_ok=True)
                world.recover()
                world.start_writer()
        world.start()
        return way

    def check(self) -> None:
        """Ship all, and see that the store has it."""
        world = self.world
        world.upload()
        if not self.whole():
            world.upload()
            assert self.whole()
        found = world.restored()
        # A COMMIT that was cut off is there or isn't.
        assert found in (list(range(1, self.written + 1)), list(range(1, self.written + 2)))
        self.written = len(found)
        history = world.local.lineage()
        assert history is not None
        self.at[history.lineage, history.last] = self.written
        for lineage, last in self.chance.sample(sorted(self.at), min(2, len(self.at))):
            assert world.restore(last, lineage) == list(range(1, self.at[lineage, last] + 1))

    def whole(self) -> bool:
        """Ship, without a note of the number: a COMMIT that was cut off may be in it."""
        return self.world.shipper.ship().whole


@pytest.mark.timeout(1800)
def test_what_was_acknowledged_is_in_the_backup_wherever_the_shipper_is_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    kills = Kills(tmp_path, random.Random(SEED))
    try:
        kills.check()
        for turn in range(ROUNDS):
            what = kills.kill(), kills.come_back()
            try:
                kills.check()
            except BaseException:
                print(f"round {turn}: killed at {what[0]}; {what[1]}")
                raise
    finally:
        kills.world.end()
    (history,) = kills.world.store.iterdir()
    print(f"{len(list((history / 'ltx' / '9').iterdir()))} snapshots in {ROUNDS} rounds")
