"""The systemd unit that starts the node: its file, its drop-ins, and whether it is enabled.

They are read the way systemd reads them. Systemd itself isn't asked: it may not have reloaded them, and a node's user
may have no bus to reach it. Drop-ins for all services (`service.d`) are ignored.
"""

import itertools
import os
import re
import shlex
from pathlib import Path
from typing import Final, NamedTuple

from control.protocol.findings import Finding
from edge_runtime.cli.doctor.machine import FEW_FILES
from edge_runtime.cli.support import user_name

NAME: Final = "skerry-edge.service"
PACKAGED: Final = "usr/lib/systemd/system"
FOLDERS: Final = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", PACKAGED)
"""Where systemd looks for units, by descending precedence."""
_NO: Final = ("", "0", "no", "n", "false", "f", "off")
"""Values with which a systemd setting is off, case-insensitive."""
_NONE: Final = re.compile(r"0+\s*[a-z]*")
"""A zero time span, in any unit."""


class UnitFacts(NamedTuple):
    """A node's unit according to its files."""

    file: Path
    """The file that counts."""
    hides: Path | None
    """The package's file that isn't read because of that one."""
    masked: bool
    values: dict[str, str]
    """The settings in its section [Service], by name."""
    start_limit: str
    """The time span in which systemd counts starts, after a few of which it gives up (StartLimitIntervalSec); '' if the
    unit doesn't set it."""
    program: Path | None
    """The program that it starts; None if that can't be determined."""
    program_there: bool
    enabled: bool
    """Whether it starts at boot."""


def look(state: Path, root: Path = Path("/")) -> UnitFacts | None:
    """Return the unit whose node has this state directory; None if there is no systemd or no such unit.

    `root`: the root folder of the machine's files. Raises: OSError; ValueError, when a file isn't text or its command
    line can't be split into words.
    """
    if not (root / "run/systemd/system").is_dir():
        return None
    files = [file for folder in FOLDERS if os.path.lexists(file := root / folder / NAME)]
    if not files:
        return None
    file, masked = files[0], files[0].resolve() == Path("/dev/null")
    texts = [(files[-1] if masked else file).read_text("utf-8")]
    texts += [drop_in.read_text("utf-8") for drop_in in _drop_ins(root)]
    values: dict[str, str] = {}
    limit = ""
    for text in texts:
        values |= section_values(text, "Service")
        limit = section_values(text, "Unit").get("StartLimitIntervalSec", limit)
    words = shlex.split(values.get("ExecStart", "").lstrip("@-:+!"))
    if _state_of(words) != state:
        return None
    program = Path(words[0]) if words else None
    there = program is None or os.access(root / program.relative_to("/") if program.is_absolute() else program, os.X_OK)
    packaged = root / PACKAGED / NAME
    hides = packaged if file != packaged and packaged.exists() else None
    enabled = any(os.path.lexists(root / folder / "multi-user.target.wants" / NAME) for folder in FOLDERS)
    return UnitFacts(file, hides, masked, values, limit, program, there, enabled)


def section_values(text: str, wanted: str) -> dict[str, str]:
    """Return the settings in a section of a unit file or drop-in; the last one if a setting is repeated. Pure."""
    found, section = {}, ""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        elif section == f"[{wanted}]" and not line.startswith(("#", ";")) and "=" in line:
            name, _, value = line.partition("=")
            found[name.strip()] = value.strip()
    return found


def unit_findings(facts: UnitFacts | None, owner: int) -> list[Finding]:
    """Check whether the unit starts the node as required. `owner`: the id of the user that owns the state directory."""
    if facts is None:
        return [Finding("unit", "ok", f"no systemd unit {NAME} is for this state directory")]
    edit = "systemctl edit skerry-edge"
    if facts.masked:
        text = f"{facts.file} masks the unit: systemd never starts the node"
        return [Finding("unit", "wrong", text, "systemctl unmask skerry-edge")]
    values, found = facts.values, []
    if facts.program is not None and not facts.program_there:
        text = f"{facts.file} starts {facts.program}, which isn't there or can't be run"
        found.append(Finding("unit", "wrong", text, "install the package skerry-edge: docs/how-to/add-a-node.md"))
    user, name = values.get("User", "") or "root", user_name(owner)
    if user not in (name, str(owner)):
        text = f"the unit runs the node as {user}, and its state directory belongs to {name}"
        found.append(Finding("unit", "wrong", text, f"{edit} (User={name})"))
    if values.get("LimitAS", "infinity").partition(":")[0] not in ("", "infinity"):
        text = "the unit sets LimitAS: a guest whose address space can't be reserved could reach its worker's memory"
        found.append(Finding("unit", "wrong", text, f"{edit} (LimitAS=infinity)"))
    if values.get("MemoryDenyWriteExecute", "").lower() not in _NO:
        text = "the unit sets MemoryDenyWriteExecute, and functions are compiled to machine code"
        found.append(Finding("unit", "wrong", text, f"{edit} (MemoryDenyWriteExecute=no)"))
    files = values.get("LimitNOFILE", "").rpartition(":")[2]
    if files.isdigit() and int(files) < FEW_FILES:
        text = f"the unit lets the node have {files} files open, and each connection of a client takes one"
        found.append(Finding("unit", "note", text, f"{edit} (LimitNOFILE=65536)"))
    if (restart := values.get("Restart", "") or "no") != "always":
        text = f"the unit has Restart={restart}: a node that has ended may stay so"
        found.append(Finding("unit", "note", text, f"{edit} (Restart=always)"))
    if not _NONE.fullmatch(facts.start_limit):
        text = "the unit has a limit of starts: a node that has ended a few times in a row isn't started again"
        cure = f"{edit} (in [Unit]: StartLimitIntervalSec=0), then systemctl reset-failed 'skerry-edge.*'"
        found.append(Finding("unit", "note", text, cure))
    if not facts.enabled:
        text = f"{NAME} isn't enabled: the node isn't started with the machine"
        found.append(Finding("unit", "note", text, "systemctl enable skerry-edge"))
    if facts.hides is not None:
        text = f"{facts.file} hides {facts.hides}: what an upgrade changes of the unit doesn't come"
        cure = f"rm {facts.file} && systemctl daemon-reload (what is to differ: {edit})"
        found.append(Finding("unit", "note", text, cure))
    return found or [Finding("unit", "ok", f"{facts.file} starts the node with the machine, and again where it ends")]


def _drop_ins(root: Path) -> list[Path]:
    """Return the unit's drop-ins by name; for each name, the one that counts."""
    found: dict[str, Path] = {}
    for folder in reversed(FOLDERS):
        found |= {file.name: file for file in (root / folder / f"{NAME}.d").glob("*.conf")}
    return [found[name] for name in sorted(found) if found[name].resolve() != Path("/dev/null")]


def _state_of(words: list[str]) -> Path | None:
    """Return the state directory in a command line of `skerry-edge run`."""
    for before, word in itertools.pairwise(words):
        if before == "--state":
            return Path(word)
        if word.startswith("--state="):
            return Path(word.removeprefix("--state="))
    return None
