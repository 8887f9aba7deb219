"""A node's power fails while it writes, moves its log and changes its release: no row that was acknowledged is lost."""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.machines.conftest import BoxFleet
from tests.machines.lossy_disk import LossyDisk
from tests.support.deadlines import scaled

pytestmark = [pytest.mark.timeout(1800), pytest.mark.never_retry]
CUTS = 20
STATE = "/var/lib/skerry-edge"
GROUP = "/sys/fs/cgroup/system.slice/skerry-edge.service"


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
    try:
        disk.mount()
        box.shell(f"cp -a /root/state/. {STATE}/; chown skerry-edge:skerry-edge {STATE}; chmod 0700 {STATE}; sync")
        fleet.start("skerry-edge")
        yield disk
    finally:
        box.attempt("systemctl", "stop", "skerry-edge")
        disk.close()
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
        files = "/root/examples/visits/visits.wasm --manifest /root/examples/visits/manifest.json"
        fleet.skerry(f"skerry function push visits {files} --config CUT={number}")


def test_no_acknowledged_row_is_lost(fleet: BoxFleet, tmp_path: Path) -> None:
    box, drawn = fleet.machine, random.Random(1)
    everything: list[str] = []
    with on_a_lossy_disk(fleet, tmp_path) as disk:
        for number in range(CUTS):
            writers = Writers(fleet.node_port, f"c{number}")
            if number % 3 == 0:
                change_release(fleet, number)
            time.sleep(drawn.uniform(0.1, 1.5))
            # A file that nobody syncs: its name may last, with what the node has synced.
            box.shell(f"echo written >{STATE}/unsynced-{number}")
            # All at one moment, in the middle of whatever they do.
            box.shell(f"echo 1 >{GROUP}/cgroup.freeze; until grep -q 'frozen 1' {GROUP}/cgroup.events; do :; done")
            disk.cut()
            box.run("systemctl", "kill", "--signal=KILL", "skerry-edge")
            box.run("systemctl", "stop", "skerry-edge")
            writers.end()
            disk.unmount()
            disk.mount()
            fleet.start("skerry-edge")
            assert writers.acknowledged
            assert missing(fleet, writers.acknowledged) == [], f"after cut {number}"
            everything += writers.acknowledged
        assert missing(fleet, everything) == []
        command = ("runuser", "-u", "skerry-edge", "--", "skerry-edge", "check-database", "--state", STATE)
        done = box.attempt(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        unsynced = box.shell(f"find {STATE} -name 'unsynced-*' -size +0").split()
    print(f"{len(everything)} acknowledged rows, and {len(unsynced)} of {CUTS} files that nobody has synced")
    assert len(unsynced) < CUTS / 2, "the disk has lost nothing, so nothing was shown"
