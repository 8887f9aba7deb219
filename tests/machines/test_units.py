"""The units as systemd runs them: started, restarted, hung, failing, removed, and with all that they forbid."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.machines.conftest import BoxFleet
from tests.machines.units import drop_in, shown, until, wait
from tests.packages.built import Package
from tests.support.deadlines import scaled

pytestmark = pytest.mark.timeout(900)
UNITS = ("skerry", "skerry-edge")
STATE = ("--state", "/var/lib/skerry-edge")


def test_both_do_all_of_their_work_behind_what_their_units_forbid(fleet: BoxFleet) -> None:
    """A function was pushed, checked, released and compiled before."""
    assert fleet.count("box") == fleet.visits("box") != ""
    status = fleet.machine.run("runuser", "-u", "skerry-edge", "--", "skerry-edge", "status", "--json", *STATE)
    assert '"unfenced": []' in status or '"unfenced":[]' in status, status
    for unit in UNITS:
        judged = ("systemd-analyze", "security", "--no-pager", "--threshold=25", f"{unit}.service")
        fleet.machine.run(*judged)
        assert "SIGSYS" not in fleet.machine.run("journalctl", "--unit", unit, "--no-pager")
    found = fleet.machine.attempt(
        "runuser", "-u", "skerry-edge", "--", "skerry-edge", "doctor", "--json", *STATE
    ).stdout
    assert '"check": "unit", "level": "wrong"' not in found, found


@pytest.mark.parametrize("unit", UNITS)
def test_restart_returns_when_the_service_answers(fleet: BoxFleet, unit: str) -> None:
    for _ in range(2):
        fleet.machine.run("systemctl", "restart", unit)
        fleet.answers(unit)


def test_a_start_that_is_slow_goes_on(fleet: BoxFleet, tmp_path: Path) -> None:
    """Here it waits for a process of the run before, longer than systemd waits for what says nothing."""
    box = fleet.machine
    drop_in(box, "skerry-edge", "[Service]", "TimeoutStartSec=4")
    try:
        box.run("systemctl", "stop", "skerry-edge")
        with (tmp_path / "log").open("wb") as log:
            box.start(["flock", f"{STATE[1]}/lock", "sleep", "8"], log)
        began = time.monotonic()
        box.run("systemctl", "start", "skerry-edge")
        assert time.monotonic() - began > 4
        assert shown(box, "skerry-edge", "NRestarts") == "0"
        fleet.answers("skerry-edge")
    finally:
        drop_in(box, "skerry-edge")
        box.run("systemctl", "restart", "skerry-edge")


@pytest.mark.parametrize("unit", UNITS)
def test_a_service_that_hangs_is_started_again(fleet: BoxFleet, unit: str) -> None:
    drop_in(fleet.machine, unit, "[Service]", "WatchdogSec=3", "TimeoutAbortSec=1")
    try:
        fleet.machine.run("systemctl", "restart", unit)
        pid = shown(fleet.machine, unit, "MainPID")
        time.sleep(5)
        assert shown(fleet.machine, unit, "MainPID") == pid, "it works, and says so"
        fleet.machine.run("kill", "-STOP", pid)
        until(fleet.machine, unit, "NRestarts", "1")
        until(fleet.machine, unit, "SubState", "running")
        fleet.answers(unit)
    finally:
        drop_in(fleet.machine, unit)
        fleet.machine.run("systemctl", "restart", unit)


def test_what_ends_again_and_again_is_started_again_and_again(fleet: BoxFleet) -> None:
    """As for a cause that passes: here, of a state directory that it can't use. Systemd's own limit is five starts."""
    box = fleet.machine
    drop_in(box, "skerry-edge", "[Service]", "RestartSec=100ms", "RestartMaxDelaySec=200ms")
    try:
        box.run("chown", "root", "/var/lib/skerry-edge/identity.json")
        box.attempt("systemctl", "restart", "skerry-edge")
        deadline = time.monotonic() + scaled(120)
        while int(shown(box, "skerry-edge", "NRestarts")) < 7:
            assert time.monotonic() < deadline
            assert shown(box, "skerry-edge", "ActiveState") != "failed"
            time.sleep(0.2)
        box.run("chown", "skerry-edge:skerry-edge", "/var/lib/skerry-edge/identity.json")
        until(box, "skerry-edge", "SubState", "running")
        fleet.answers("skerry-edge")
    finally:
        drop_in(box, "skerry-edge")


def repackaged(package: Package, folder: Path, mark: str) -> Package:
    """A package whose program says nothing to systemd, and whose unit waits for nothing: what it was once. Its version
    is the present one's with `mark`."""
    version = package.version + mark
    tree = folder / package.name
    subprocess.run(["dpkg-deb", "-R", package.file, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text("utf-8").replace(package.version, version), "utf-8")
    (unit,) = (tree / "usr" / "lib" / "systemd" / "system").glob("*.service")
    text = unit.read_text("utf-8").replace("Type=notify", "Type=simple")
    unit.write_text("".join(line for line in text.splitlines(True) if not line.startswith("WatchdogSec")), "utf-8")
    (manager,) = tree.glob("usr/lib/*/lib/*/site-packages/control/protocol/service_manager.py")
    silent = manager.read_text("utf-8").replace("if self._address:", "if False:")
    manager.write_text(silent, "utf-8")
    # It would be taken for that of this text.
    (manager.parent / "__pycache__" / f"{manager.stem}.cpython-313.pyc").unlink()
    file = folder / f"{package.name}_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, file], check=True, capture_output=True)
    shutil.rmtree(tree)
    return Package(package.name, version, file)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_and_its_program_are_up_and_downgraded_together(
    fleet: BoxFleet, built: dict[str, Package], unit: str, tmp_path: Path
) -> None:
    """A program that says nothing to systemd would be ended by a unit that waits for it."""
    box, name = fleet.machine, {"skerry": "skerry-control"}.get(unit, unit)
    before = fleet.count("versions")
    earlier = repackaged(built[name], tmp_path, "~earlier")
    earlier.give(box)
    # A service that ends while files are exchanged is started again by the unit that it had.
    for package, kind in ((earlier, "simple"), (built[name], "notify")):
        began = time.monotonic()
        box.apt("install", "--allow-downgrades", package.path)
        assert time.monotonic() - began < scaled(60), "systemd waits for what says nothing"
        assert shown(box, unit, "Type") == kind
        assert shown(box, unit, "NRestarts") == "0"
        wait(lambda: fleet.is_there(unit), "the service doesn't answer")
    fleet.answers(unit)
    fleet.at_target()
    assert fleet.visits("versions") == before


def test_a_node_that_was_removed_is_installed_again_on_its_socket(fleet: BoxFleet, built: dict[str, Package]) -> None:
    box = fleet.machine
    box.run("systemctl", "stop", "skerry-edge")
    folder = "/etc/systemd/system/skerry-edge.socket.d"
    box.shell(f"mkdir -p {folder}")
    address = f"ListenStream=127.0.0.1:{fleet.node_port}"
    box.write(f"{folder}/address.conf", f"[Socket]\nListenStream=\n{address}\n")
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "enable", "--now", "skerry-edge.socket")
    box.run("systemctl", "enable", "--now", "skerry-edge.service")
    before = fleet.count("again")
    box.apt("remove", "skerry-edge")
    assert box.attempt("pgrep", "--euid", "skerry-edge").stdout == ""
    said = box.apt("install", built["skerry-edge"].path)
    assert "ailed" not in said, said
    for unit in ("skerry-edge.socket", "skerry-edge.service"):
        assert box.run("systemctl", "is-active", unit).strip() == "active"
    assert fleet.visits("again") == before
    assert box.run("systemctl", "show", "--value", "--property", "TriggeredBy", "skerry-edge.service").strip()
    # Its address is the socket's: the service has no other one.
    assert "serving on" in box.run("journalctl", "--unit", "skerry-edge", "--no-pager")
    fleet.machine.run("systemctl", "restart", "skerry-edge")
    assert fleet.visits("again") == before
