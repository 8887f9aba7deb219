"""What `skerry-edge doctor` finds of the unit by which systemd starts the node, in the files of a machine."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from control.protocol.findings import worst
from edge_runtime.cli.doctor import systemd_unit

UNITS = Path(__file__).parents[4] / "packaging" / "systemd"
STATE = Path("/var/lib/skerry-edge")


class Machine:
    """The files of a machine on which the package is installed and the unit enabled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own = root / "etc/systemd/system"
        self.packaged = root / systemd_unit.PACKAGED / systemd_unit.NAME
        self.program = root / "usr/bin/skerry-edge"
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        for folder in (self.own, self.packaged.parent, self.program.parent, root / "run/systemd/system"):
            folder.mkdir(parents=True)
        shutil.copy(UNITS / systemd_unit.NAME, self.packaged)
        self.program.write_text("#!/bin/sh\n")
        self.program.chmod(0o755)
        self.systemctl("enable")
        self.drop_in("00-user", f"User={self.user}")

    def systemctl(self, verb: str) -> None:
        program = shutil.which("systemctl")
        if program is None:
            pytest.skip("there is no systemctl")
        command = [program, f"--root={self.root}", verb, systemd_unit.NAME]
        subprocess.run(command, check=True, capture_output=True)

    def drop_in(self, name: str, *lines: str, folder: str = "etc/systemd/system") -> None:
        file = self.root / folder / f"{systemd_unit.NAME}.d" / f"{name}.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(["# by hand", "[Service]", *lines]) + "\n")

    def found(self, level: str) -> str:
        """What is found, whose worst level must be this one, as a text."""
        facts = systemd_unit.look(STATE, self.root)
        assert facts is not None
        findings = systemd_unit.unit_findings(facts, os.geteuid())
        assert worst(findings) == level, findings
        assert all(finding.cure for finding in findings if finding.level != "ok")
        return "\n".join(finding.what for finding in findings)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_packaged_unit_is_as_it_should_be(machine: Machine) -> None:
    assert "starts the node with the machine" in machine.found("ok")


def test_a_machine_without_systemd_and_a_unit_of_another_node(machine: Machine, tmp_path: Path) -> None:
    assert systemd_unit.look(Path("/srv/other"), machine.root) is None
    machine.drop_in("10-state", "ExecStart=", "ExecStart=/usr/bin/skerry-edge run --state=/srv/other")
    assert systemd_unit.look(STATE, machine.root) is None
    assert systemd_unit.look(Path("/srv/other"), machine.root) is not None
    assert systemd_unit.look(STATE, tmp_path / "empty") is None
    [found] = systemd_unit.unit_findings(None, 0)
    assert found.level == "ok"


def test_a_node_that_isnt_started_or_not_again(machine: Machine) -> None:
    machine.systemctl("disable")
    assert "isn't enabled" in machine.found("note")
    machine.systemctl("enable")
    machine.drop_in("restart", "Restart=on-failure")
    assert "Restart=on-failure" in machine.found("note")
    # What comes later by its name counts, and a file of /etc hides one of the same name elsewhere.
    machine.drop_in("restart", "Restart=always", folder="usr/lib/systemd/system")
    assert "Restart=on-failure" in machine.found("note")
    machine.drop_in("zz", "; as it was", "Restart=always")
    machine.found("ok")
    machine.drop_in("limit", "[Unit]", "StartLimitIntervalSec=10s")
    assert "limit of starts" in machine.found("note")
    machine.drop_in("limit", "[Unit]", "StartLimitIntervalSec=0s")
    machine.found("ok")
    machine.program.unlink()
    assert "which isn't there" in machine.found("wrong")


def test_what_a_node_cant_run_with(machine: Machine) -> None:
    machine.drop_in("a", "LimitNOFILE=1024")
    assert "1024 files open" in machine.found("note")
    machine.drop_in("a", "LimitAS=4G")
    assert "LimitAS" in machine.found("wrong")
    machine.drop_in("a", "MemoryDenyWriteExecute=yes")
    assert "MemoryDenyWriteExecute" in machine.found("wrong")
    for no in ("no", "N", "f", "off"):
        machine.drop_in("a", "LimitAS=infinity", f"MemoryDenyWriteExecute={no}", "LimitNOFILE=1024:524288")
        machine.found("ok")
    machine.drop_in("a", "User=nobody-of-this-name")
    assert "runs the node as nobody-of-this-name" in machine.found("wrong")


def test_a_unit_that_hides_or_masks_the_packaged_one(machine: Machine) -> None:
    shutil.copy(machine.packaged, machine.own)
    assert "hides" in machine.found("note")
    (machine.own / systemd_unit.NAME).unlink()
    machine.found("ok")
    (machine.own / systemd_unit.NAME).symlink_to("/dev/null")
    assert "masks" in machine.found("wrong")
