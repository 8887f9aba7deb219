"""What both Debian packages put on a bare Debian 13: users, files and their modes, units, programs that start."""

import re
import subprocess

import pytest

from tests.packages.built import Package
from tests.packages.machine import ROOT, Machine, enabled

pytestmark = pytest.mark.timeout(600)
UNITS = ("skerry.service", "skerry-edge.service", "skerry-edge.socket")
# What programs load, start or read by name, which no tool finds in them: WasmEdge, libseccomp; kill, of the units;
# openssl, of the documents; and time zones.
NEEDED = {
    "skerry-control": {"ca-certificates", "libseccomp2", "libwasmedge0", "openssl", "procps", "python3", "tzdata"},
    "skerry-edge": {"ca-certificates", "libseccomp2", "libwasmedge0", "procps", "python3"},
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_package_alone_brings_what_its_program_needs(bare: Machine, built: dict[str, Package], name: str) -> None:
    said = bare.apt("--simulate", "install", built[name].path)
    comes = set(re.findall(r"^Inst (\S+)", said, re.MULTILINE))
    there = set(bare.run("dpkg-query", "--show", "--showformat", "${Package}\\n").split())
    assert NEEDED[name] - comes - there == set(), said


def test_the_users_are_of_the_system_and_cannot_sign_in(machine: Machine) -> None:
    for user, home in (("skerry", "/"), ("skerry-edge", "/var/lib/skerry-edge")):
        name, _, number, _, _, folder, shell = machine.run("getent", "passwd", user).strip().split(":")
        assert (name, folder, shell) == (user, home, "/usr/sbin/nologin")
        assert 0 < int(number) < 1000
        assert machine.run("id", "-Gn", user).split() == [user]


def test_files_have_their_owners_and_modes(machine: Machine) -> None:
    assert machine.stat("/etc/skerry") == "root root 755"
    assert machine.stat("/etc/skerry/control.env") == "root skerry 640"
    assert machine.stat("/etc/skerry/edge.env") == "root skerry-edge 640"
    assert machine.stat("/var/lib/skerry-edge") == "skerry-edge skerry-edge 700"
    for package in ("skerry-control", "skerry-edge"):
        files = machine.run("dpkg", "-L", package).split("\n")
        assert f"/usr/share/doc/{package}/copyright" in files
        others = machine.shell(rf"find /usr/lib/{package} ! -type l \( ! -user root -o -perm /6022 \)")
        assert others == ""


def test_settings_are_read_by_the_service_and_by_no_other_user(machine: Machine) -> None:
    for user, other, settings in (("skerry", "skerry-edge", "control.env"), ("skerry-edge", "skerry", "edge.env")):
        machine.run("runuser", "-u", user, "--", "cat", f"/etc/skerry/{settings}")
        assert machine.attempt("runuser", "-u", user, "--", "test", "-w", f"/etc/skerry/{settings}").returncode != 0
        assert machine.attempt("runuser", "-u", other, "--", "cat", f"/etc/skerry/{settings}").returncode != 0


def test_systemd_has_no_complaint_about_the_units(machine: Machine) -> None:
    paths = [f"/usr/lib/systemd/system/{unit}" for unit in UNITS]
    verified = machine.attempt("systemd-analyze", "verify", "--man=no", *paths)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def test_nothing_is_enabled_and_nothing_runs(machine: Machine) -> None:
    assert enabled(machine) == []
    for user in ("skerry", "skerry-edge"):
        assert machine.attempt("pgrep", "-u", user).stdout == ""


def test_programs_say_version_commit_and_date(machine: Machine) -> None:
    git = ["git", "show", "--no-patch", "--format=%H", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for program in ("skerry", "skerry-edge"):
        words = rf"{program}, version \S+, commit ([0-9a-f]{{12}}) of \d{{4}}-\d\d-\d\d\n"
        said = re.fullmatch(words, machine.run(program, "--version"))
        assert said
        assert commit.startswith(said[1])
        assert f"{program} \\- " in machine.shell(f"zcat /usr/share/man/man1/{program}.1.gz")


def test_a_program_that_runs_writes_nothing_beside_its_modules(machine: Machine) -> None:
    """Everything is compiled already: no file that no package has, as root may have made them."""
    machine.run("skerry", "node", "--help")
    machine.run("skerry-edge", "run", "--help")
    for package in ("skerry-control", "skerry-edge"):
        there = set(machine.run("find", f"/usr/lib/{package}").split("\n"))
        assert there - set(machine.run("dpkg", "-L", package).split("\n")) == set()
