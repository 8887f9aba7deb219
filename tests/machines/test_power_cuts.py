"""A node's power fails while it writes, moves its log and changes its release: no row that was acknowledged is lost."""

import http.client
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.machines.conftest import BoxFleet
from tests.machines.lossy_disk import LossyDisk
from tests.machines.units import drop_in, wait
from tests.support.deadlines import scaled

pytestmark = [pytest.mark.timeout(1800), pytest.mark.never_retry]
CUTS = 21
AIMS = ("anywhere", "checkpoint", "")
"""Where each power cut is; '' is the next one of `POINTS`."""
POINTS = (
    "commit",
    "edge.sync.swap.before",
    "edge.commit.after",
    "edge.apply.after",
    "commit",
    "edge.sync.swap.after",
    "edge.commit.before",
)
"""Places in a release, as aim.py knows them."""
STATE = "/var/lib/skerry-edge"
VISITS = "visits /root/examples/visits/visits.wasm --manifest /root/examples/visits/manifest.json"
FAULTS = "/run/faults"


class Writers:
    """Clients that write rows of names of their own, one after the other, until they get no answer."""

    def __init__(self, port: int, prefix: str) -> None:
        self.acknowledged: list[str] = []
        self._port = port
        self._threads = [threading.Thread(target=self._write, args=(f"{prefix}-{n}",)) for n in range(3)]
        for thread in self._threads:
            thread.start()

    def _write(self, prefix: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=scaled(20))
        number = 0
        try:
            while True:
                number += 1
                connection.request("POST", f"/functions/visits/{prefix}-{number}")
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.acknowledged.append(f"{prefix}-{number}")
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()

    def have_written(self) -> bool:
        return bool(self.acknowledged)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(scaled(60))
            assert not thread.is_alive()


@contextmanager
def on_a_lossy_disk(fleet: BoxFleet, folder: Path) -> Iterator[LossyDisk]:
    """Have the node's state directory on such a disk."""
    box = fleet.machine
    fleet.stop("skerry-edge")
    disk = LossyDisk(box, STATE, folder)
    box.shell(f"mkdir /root/state; cp -a {STATE}/. /root/state/")
    box.shell(f"mkdir {FAULTS}; chown skerry-edge: {FAULTS}")
    drop_in(box, "skerry-edge", "[Service]", f"Environment=SKERRY_FAULTS={FAULTS}", f"ReadWritePaths={FAULTS}")
    try:
        disk.mount()
        box.shell(f"cp -a /root/state/. {STATE}/; chown skerry-edge:skerry-edge {STATE}; chmod 0700 {STATE}; sync")
        fleet.start("skerry-edge")
        yield disk
    finally:
        box.attempt("systemctl", "stop", "skerry-edge")
        disk.close()
        drop_in(box, "skerry-edge")
        box.run("systemctl", "start", "skerry-edge")


def missing(fleet: BoxFleet, names: list[str]) -> list[str]:
    """Those of the rows that the node doesn't have."""
    connection = http.client.HTTPConnection("127.0.0.1", fleet.node_port, timeout=scaled(60))

    def answer(name: str) -> bytes:
        connection.request("GET", f"/functions/visits/{name}")
        got = connection.getresponse()
        body = got.read()
        assert got.status == 200, body
        return body

    nothing = answer("nobody")
    lacking = [name for name in names if answer(name) == nothing]
    connection.close()
    return lacking


def change_release(fleet: BoxFleet, number: int) -> None:
    """Make a release that the node gets in a moment: of a schema change, or of another version of its function."""
    if number % 2:
        fleet.machine.write(
            "/root/change.sql", f"CREATE TABLE cut_{number} (x INTEGER); INSERT INTO cut_{number} VALUES (1)"
        )
        fleet.skerry(f"skerry schema add /root/change.sql --name cut-{number}")
    else:
        fleet.skerry(f"skerry function push {VISITS} --config CUT={number}")


def freeze(fleet: BoxFleet, aim: str, number: int) -> str:
    """Freeze all of the node's processes in the middle of what `aim` says; return what it was."""
    box = fleet.machine
    if aim not in ("anywhere", "checkpoint"):
        held = ("edge.commit.before", "edge.commit.after") if aim == "commit" else (aim,)
        for point in held:
            box.write(f"{FAULTS}/{point}", "hold")
        change_release(fleet, number)
    hit = box.run("python3", "/root/aim.py", aim, timeout=scaled(150)).strip()
    # The next start doesn't meet them.
    box.shell(f"rm -f {FAULTS}/*")
    return hit


def test_no_acknowledged_row_is_lost(fleet: BoxFleet, tmp_path: Path) -> None:
    box, drawn, points = fleet.machine, random.Random(1), itertools.cycle(POINTS)
    box.put(Path(__file__).with_name("aim.py"), "/root/aim.py")
    everything: list[str] = []
    hit = Counter[str]()
    with on_a_lossy_disk(fleet, tmp_path) as disk:
        for number in range(CUTS):
            writers = Writers(fleet.node_port, f"c{number}")
            wait(writers.have_written, "no row is acknowledged")
            time.sleep(drawn.uniform(0.1, 1.5))
            # A file that nobody syncs: its name may last, with what the node has synced.
            box.shell(f"echo written >{STATE}/unsynced-{number}")
            aim = AIMS[number % len(AIMS)] or next(points)
            hit[freeze(fleet, aim, number)] += 1
            disk.cut()
            box.run("systemctl", "kill", "--signal=KILL", "skerry-edge")
            box.run("systemctl", "stop", "skerry-edge")
            writers.end()
            disk.unmount()
            disk.mount()
            fleet.start("skerry-edge")
            assert writers.acknowledged
            assert missing(fleet, writers.acknowledged) == [], f"after cut {number}, in {aim}"
            everything += writers.acknowledged
        assert missing(fleet, everything) == []
        fleet.at_target()
        command = ("runuser", "-u", "skerry-edge", "--", "skerry-edge", "check-database", "--state", STATE)
        done = box.attempt(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        unsynced = box.shell(f"find {STATE} -name 'unsynced-*' -size +0").split()
    print(f"{len(everything)} acknowledged rows, {len(unsynced)} of {CUTS} files that nobody has synced; cut in {hit}")
    assert hit["checkpoint"] == hit["anywhere"] == CUTS / 3
    # A COMMIT takes a few milliseconds: a cut that is aimed at it may come right after it.
    assert hit["commit"] + hit["edge.commit.after"] >= 2
    assert hit["edge.sync.swap.before"]
    assert len(unsynced) < CUTS / 2, "the disk has lost nothing, so nothing was shown"
