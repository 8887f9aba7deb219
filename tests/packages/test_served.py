"""Control and a node of the packages, from the first setting to the purge, as docs/how-to go; real servers beside them.

The tests go one after the other on one fleet. Each leaves it as it was, except the last, which purges it.
"""

import json
import re
import resource
from pathlib import Path

import pytest

from tests.packages.built import SETTINGS, Package, later
from tests.packages.fleet import CA, NAME, Fleet
from tests.packages.machine import APT, enabled

pytestmark = pytest.mark.timeout(600)
KEEP = ("-o", "Dpkg::Options::=--force-confold")
SYSTEMCTL = """#!/bin/sh
# Is found before the real one. Stands for that of a system where both services run: says so, and writes down what it is
# asked.
case "$*" in *is-active*|*is-enabled*) exit 0;; esac
echo "systemctl $*" >>/root/asked
"""


def test_a_call_by_curl_is_answered_by_the_installed_node(fleet: Fleet) -> None:
    assert json.loads(fleet.count("ada"))["count"] == 1
    assert json.loads(fleet.visits("ada"))["count"] == 1
    status = fleet.skerry("skerry status --check")
    assert "edge-7" in status
    for service in fleet.services.values():
        assert "Traceback" not in service.said()


def test_the_installed_node_is_compiled(fleet: Fleet) -> None:
    command = ("skerry-edge", "status", "--state", "/var/lib/skerry-edge")
    said = fleet.machine.run("runuser", "-u", "skerry-edge", "--", *command)
    for part in ("front", "workers' loop"):
        assert f"\nbuilt      the {part} is compiled\n" in said
        assert f"skerry.front: the {part} is compiled\n" in fleet.services["skerry-edge"].said()
    assert "workers run all calls in Python" not in fleet.services["skerry-edge"].said()


def test_programs_run_as_their_units_say(fleet: Fleet) -> None:
    """Their user, their number of files, no capability but one, no new privileges, a system that they can't write."""
    for unit, user, capability in (("skerry", "skerry", 1 << 10), ("skerry-edge", "skerry-edge", 0)):
        number = fleet.machine.run("cat", f"/run/{unit}.number").strip()
        status = dict(line.split(":", 1) for line in fleet.machine.run("cat", f"/proc/{number}/status").splitlines())
        assert set(status["Uid"].split()) == {fleet.machine.run("id", "-u", user).strip()}
        assert (int(status["CapBnd"], 16), int(status["CapEff"], 16)) == (capability, capability)
        assert status["NoNewPrivs"].strip() == "1"
        limits = fleet.machine.run("cat", f"/proc/{number}/limits")
        files = re.search(r"^Max open files +(\d+) ", limits, re.MULTILINE)
        assert files
        assert int(files[1]) in (65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        mounts = fleet.machine.run("cat", f"/proc/{number}/mountinfo")
        assert re.search(r" /\S* / ro,", mounts)
        reload = fleet.machine.run("grep", "-h", "^ExecReload=", f"/usr/lib/systemd/system/{unit}.service").strip()
        command = reload.removeprefix("ExecReload=").replace("$MAINPID", number)
        fleet.machine.shell(f"runuser -u {user} -- {command}")
    fleet.count("reloaded")


def test_a_later_version_keeps_settings_state_and_rows(fleet: Fleet, built: dict[str, Package], tmp_path: Path) -> None:
    """Where the new version's settings have a line more, too: dpkg asks, and the administrator keeps their own."""
    machine = fleet.machine
    before = fleet.count("grace")
    kept = {path: (machine.run("cat", path), machine.stat(path)) for path in SETTINGS.values()}
    fleet.stop("skerry-edge")
    fleet.stop("skerry")
    news = [later(package, tmp_path) for package in built.values()]
    machine.apt(*KEEP, "install", *(new.give(machine) for new in news))
    for new in news:
        assert machine.run("dpkg-query", "--show", "--showformat", "${Version}", new.name) == new.version
    assert {path: (machine.run("cat", path), machine.stat(path)) for path in SETTINGS.values()} == kept
    assert machine.stat("/var/lib/skerry-edge") == "skerry-edge skerry-edge 700"
    assert enabled(machine) == []
    fleet.start("skerry")
    fleet.start("skerry-edge")
    assert fleet.visits("grace") == before
    assert fleet.count("grace") != before


def test_where_control_runs_its_package_migrates_and_then_restarts(fleet: Fleet, built: dict[str, Package]) -> None:
    """Where it can't migrate it restarts nothing, and dpkg --configure tries again. It is so on the way back, too."""
    machine = fleet.machine
    package = built["skerry-control"]
    machine.write("/usr/sbin/systemctl", SYSTEMCTL)
    machine.shell("chmod 0755 /usr/sbin/systemctl; mkdir -p /run/systemd/system; : >/root/asked")
    settings = machine.run("cat", SETTINGS[package.name])
    try:
        nowhere = "SKERRY_METADATA_URL='postgresql://skerry@127.0.0.1:9/none'"
        wrong = re.sub(r"(?m)^SKERRY_METADATA_URL=.*$", nowhere, settings)
        machine.write(SETTINGS[package.name], wrong)
        command = (*APT, *KEEP, "--allow-downgrades", "--reinstall", "install", package.path)
        failed = machine.attempt(*command, timeout=500)
        assert failed.returncode != 0
        assert "skerry.service runs on as it was" in failed.stdout + failed.stderr
        assert "restart" not in machine.run("cat", "/root/asked")
        machine.write(SETTINGS[package.name], settings)
        machine.run("dpkg", "--configure", package.name, timeout=500)
        assert re.search(r"^systemctl .*restart skerry\.service", machine.run("cat", "/root/asked"), re.MULTILINE)
    finally:
        machine.write(SETTINGS[package.name], settings)
        machine.shell("rm -r /usr/sbin/systemctl /run/systemd/system")


def test_a_package_that_was_removed_comes_back_to_its_state(fleet: Fleet, built: dict[str, Package]) -> None:
    machine = fleet.machine
    before = fleet.count("joan")
    nodes = json.loads(fleet.skerry("skerry node list --json"))
    fleet.stop("skerry-edge")
    settings = machine.run("cat", SETTINGS["skerry-edge"])
    files = machine.run("find", "/var/lib/skerry-edge", "-printf", "%p %U:%G %m\\n")
    machine.apt("remove", "skerry-edge")
    assert machine.run("find", "/var/lib/skerry-edge", "-printf", "%p %U:%G %m\\n") == files
    assert machine.run("cat", SETTINGS["skerry-edge"]) == settings
    assert not machine.exists("/usr/bin/skerry-edge")
    assert not machine.exists("/usr/lib/skerry-edge")
    machine.apt(*KEEP, "install", built["skerry-edge"].path)
    assert machine.stat(SETTINGS["skerry-edge"]) == "root skerry-edge 640"
    fleet.start("skerry-edge")
    assert fleet.visits("joan") == before
    after = json.loads(fleet.skerry("skerry node list --json"))
    assert json.dumps(after).count('"edge-7"') == json.dumps(nodes).count('"edge-7"') == 1


def test_a_purge_leaves_nothing_but_users_and_what_others_wrote(fleet: Fleet) -> None:
    machine = fleet.machine
    fleet.stop("skerry-edge")
    fleet.stop("skerry")
    owned = {path for name in SETTINGS for path in machine.run("dpkg", "-L", name).split("\n") if "skerry" in path}
    machine.apt("purge", *SETTINGS)
    # Its keys and certificates the administrator has put there.
    own = {"/etc/skerry/ca.pem", "/etc/skerry/control.key", "/etc/skerry/control.pem"}
    assert {path for path in owned if machine.exists(path)} <= {"/etc/skerry"}
    found = machine.run("find", "/", "-xdev", "-name", "*skerry*", "-not", "-path", "/root/*").split()
    assert set(found) - {"/var/cache/skerry-archives"} == {"/etc/skerry"}
    assert set(machine.run("find", "/etc/skerry", "-type", "f").split()) == own
    assert not machine.exists("/var/lib/skerry-edge")
    assert machine.run("dpkg-query", "--show", "--showformat", "${Package}\\n").count("skerry") == 0
    # Debian's users stay, so that their numbers are given to no one else.
    machine.run("id", "skerry")
    machine.run("id", "skerry-edge")
    assert (NAME in machine.run("cat", "/etc/hosts"), machine.exists(CA)) == (True, True)
