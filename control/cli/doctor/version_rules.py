"""Rules for the distance between the versions of this command, of control's replicas, and of nodes. Pure."""

import re
from typing import Final

from control.cli.doctor.fleet_rules import named
from control.cli.support.client import Json
from control.protocol.findings import Finding

VERSION: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
"""The major and minor numbers at the beginning of a version."""
CURE: Final = "docs/how-to/upgrade.md"


def controls_version(replicas: list[Json], own: str) -> str:
    """Return the version that others are compared with: the answering replica's, or `own` if that is unknown."""
    return next((replica["version"] for replica in replicas if replica["answers"] and replica["version"]), own)


def replica_findings(replicas: list[Json], own: str) -> list[Finding]:
    """Judge the replicas' versions; `own` is this command's, in the same form."""
    found = []
    silent = sum(replica["version"] is None for replica in replicas)
    versions = sorted({replica["version"] for replica in replicas if replica["version"]})
    answers = controls_version(replicas, own)
    if any(apart(answers, version) > 1 for version in versions):
        text = f"replicas of control are more than one version apart: {named(versions)}"
        found.append(Finding("replicas", "wrong", text, CURE))
    elif len(versions) > 1:
        text = f"the replicas of control have different versions: {named(versions)}"
        found.append(Finding("replicas", "note", text, f"upgrade the others, too: {CURE}"))
    if silent:
        text = f"replicas of control that are too old to tell their version: {silent}"
        found.append(Finding("replicas", "note", text, f"upgrade them: {CURE}"))
    if apart(answers, own) > 1:
        text = f"this command has the version {own}, and control {answers}: they are more than one version apart"
        found.append(Finding("replicas", "wrong", text, f"install the command of control's version here: {CURE}"))
    return found or [Finding("replicas", "ok", f"control has the version {answers}; replicas: {len(replicas)}")]


def node_findings(nodes: list[Json], control: str) -> list[Finding]:
    """Judge the nodes' versions; `control` is control's, in the same form."""
    silent = [node["name"] for node in nodes if node["version"] is None]
    told = [(f"{node['name']} ({node['version']})", node["version"]) for node in nodes if node["version"]]
    distant = [name for name, version in told if apart(version, control) > 1]
    newer = [name for name, version in told if apart(version, control) == 1 and is_newer(version, control)]
    found = []
    if distant:
        text = f"nodes more than one version apart from control, {control}: {named(distant)}"
        found.append(Finding("versions", "wrong", text, CURE))
    if newer:
        text = f"nodes that are newer than control, {control}, which is upgraded before them: {named(newer)}"
        found.append(Finding("versions", "note", text, CURE))
    if silent:
        text = f"nodes that haven't told their version (they are too old, or haven't polled): {named(silent)}"
        found.append(Finding("versions", "note", text, CURE))
    return found or [Finding("versions", "ok", f"no node is more than one version behind control, {control}")]


def apart(one: str, other: str) -> int:
    """Return how many minor versions apart two versions such as `0.1.0+commit` are.

    Versions with different major numbers are many apart, and so is a text that isn't a version.
    """
    first, second = _numbers(one), _numbers(other)
    if first is None or second is None:
        return 100
    return 100 * abs(first[0] - second[0]) + abs(first[1] - second[1])


def is_newer(one: str, other: str) -> bool:
    """Return whether the first version is later than the second; False if either isn't a version."""
    first, second = _numbers(one), _numbers(other)
    return first is not None and second is not None and first > second


def _numbers(version: str) -> tuple[int, int] | None:
    match = VERSION.match(version)
    return None if match is None else (int(match[1]), int(match[2]))
