"""What closes a node's state directory, or a part of it: it is said, with its cure, and a node that can serve does."""

import pytest

from tests.machines.conftest import BoxFleet
from tests.machines.test_power_cuts import VISITS
from tests.machines.units import said, until, wait

pytestmark = pytest.mark.timeout(300)
STATE = "/var/lib/skerry-edge"
READ_ONLY = f"""
cp -a {STATE} /root/closed
mount -t tmpfs tmpfs {STATE}
cp -a /root/closed/. {STATE}/
chown --reference=/root/closed {STATE}
chmod 0700 {STATE}
mount -o remount,ro {STATE}
"""


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (f"chown root {STATE}/db/skerry.db", f"{STATE}/db/skerry.db is closed to this user"),
        (f"chown root {STATE}/db", f"{STATE}/db is closed to this user"),
        (f"chown root {STATE}/lock", f"{STATE}/lock is closed to this user"),
        (f"chown root {STATE}/temp", f"{STATE}/temp is closed to this user"),
        (f"chown root {STATE}/witness.json", f"{STATE}/witness.json is closed to this user"),
        (READ_ONLY, "is on a file system that is mounted read-only"),
    ],
    ids=["file", "folder", "lock", "temporary", "witness", "read-only"],
)
def test_what_closes_it_is_said_with_its_cure(fleet: BoxFleet, wrong: str, text: str) -> None:
    box, before = fleet.machine, fleet.count("closed")
    fleet.stop("skerry-edge")
    box.shell(wrong)
    try:
        box.attempt("systemctl", "start", "skerry-edge")
        wait(lambda: said(box, "skerry-edge", text), "the node doesn't say what is wrong")
        assert "Traceback" not in box.run("journalctl", "--unit", "skerry-edge", "--no-pager")
        (found,) = (one for one in fleet.edge("doctor")["findings"] if one["check"] == "state")
        assert found["level"] == "wrong"
        assert text in found["what"]
        box.shell(found["cure"].removeprefix("as root: "))
        until(box, "skerry-edge", "SubState", "running")
        fleet.answers("skerry-edge")
        assert fleet.visits("closed") == before
    finally:
        box.attempt("systemctl", "stop", "skerry-edge")
        box.attempt("umount", STATE)
        box.shell(f"rm -rf /root/closed; chown -R skerry-edge: {STATE}")
        fleet.start("skerry-edge")


def test_a_node_serves_on_without_what_syncs_alone_need(fleet: BoxFleet) -> None:
    box, before, release = fleet.machine, fleet.count("closed"), fleet.edge("status")["release"]["number"]
    fleet.stop("skerry-edge")
    box.shell(f"chown root {STATE}/artifacts {STATE}/outbox {STATE}/telemetry")
    try:
        fleet.start("skerry-edge")
        assert fleet.visits("closed") == before
        fleet.skerry(f"skerry function push {VISITS} --config CLOSED=1")
        trouble = wait(lambda: fleet.edge("status")["error"], "the sync doesn't fail")
        assert trouble["code"] == "disk_failed"
        (found,) = (one for one in fleet.edge("doctor")["findings"] if one["check"] == "state")
        assert "is closed to this user" in found["what"]
        box.shell(found["cure"].removeprefix("as root: "))
        fleet.at_target(after=release)
    finally:
        box.shell(f"chown -R skerry-edge: {STATE}")
        box.run("systemctl", "restart", "skerry-edge")
