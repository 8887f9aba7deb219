"""What the Debian packages bring beside the programs: settings that systemd and a shell read alike, and units."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SETTINGS = {"control": "SKERRY_", "edge": "SKERRY_EDGE_"}
UNITS = {"skerry": ("skerry-control", "control"), "skerry-edge": ("skerry-edge", "edge")}
ENTRY = re.compile(r"#?([A-Z_]+)='([^'\\]*)'")


def entries(text: str) -> dict[str, str]:
    """The settings of a file by name, those that are commented out too."""
    found = [ENTRY.fullmatch(line) for line in text.splitlines()]
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shell_reads_the_settings_as_they_are_written(name: str, tmp_path: Path) -> None:
    """Between ' and ' neither a shell nor systemd changes anything, where the value has no ' and no backslash."""
    text = (ROOT / "packaging" / f"{name}.env").read_text("utf-8")
    set_all = re.sub(r"^#(?=[A-Z_]+=)", "", text, flags=re.MULTILINE)
    assert [line for line in set_all.splitlines() if line and line[0] != "#" and not ENTRY.fullmatch(line)] == []
    (tmp_path / "settings").write_text(set_all)
    command = ["env", "-i", "sh", "-c", "set -a; . ./settings; /usr/bin/env -0"]
    shell = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    read = dict(item.split("=", 1) for item in shell.split("\0") if item)
    wanted = entries(set_all)
    assert {key: read.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_are_documented(name: str) -> None:
    documented = (ROOT / "docs" / "settings.md").read_text("utf-8")
    named = entries((ROOT / "packaging" / f"{name}.env").read_text("utf-8"))
    assert named
    assert [setting for setting in named if f"`{setting}`" not in documented and setting != "HTTPS_PROXY"] == []
    assert [setting for setting in named if not setting.startswith((SETTINGS[name], "HTTPS_PROXY"))] == []


def test_the_documented_settings_of_control_are_those_of_its_file() -> None:
    page = (ROOT / "docs" / "how-to" / "set-up-control.md").read_text("utf-8")
    (block,) = re.findall(r"```text\n( *SKERRY_METADATA_URL=.*?) *```", page, re.DOTALL)
    shown = [line.strip() for line in block.splitlines()]
    assert [line for line in shown if line and not ENTRY.fullmatch(line)] == []


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_runs_what_its_package_installs(unit: str) -> None:
    package, settings = UNITS[unit]
    text = (ROOT / "packaging" / "systemd" / f"{unit}.service").read_text("utf-8")
    debian = ROOT / "packaging" / "debian"
    assert f"ExecStart=/usr/bin/{unit} " in text
    assert f"EnvironmentFile={'-' if settings == 'edge' else ''}/etc/skerry/{settings}.env" in text
    user = re.search(r"^User=(.+)$", text, re.MULTILINE)
    assert user
    assert (debian / f"{package}.sysusers").read_text("utf-8").startswith(f"u {user[1]} ")
    installed = (debian / f"{package}.install").read_text("utf-8")
    assert f"packaging/systemd/{unit}.service usr/lib/systemd/system" in installed
    assert f"packaging/{settings}.env etc/skerry" in installed


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_allows_little(unit: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    command = ["systemd-analyze", "security", "--no-pager", "--offline=yes", "--threshold=25"]
    unit_file = ROOT / "packaging" / "systemd" / f"{unit}.service"
    judged = subprocess.run([*command, unit_file], capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout


def test_a_socket_is_started_before_its_service() -> None:
    """Once the service runs, its socket can't be started any more."""
    rules = (ROOT / "packaging" / "debian" / "rules").read_text("utf-8")
    started = re.findall(r"^\tdh_installsystemd .*(skerry-edge\.\w+)", rules, re.MULTILINE)
    assert started == ["skerry-edge.socket", "skerry-edge.service"]
