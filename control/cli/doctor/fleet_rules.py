"""Rules for control's answers about itself, nodes, groups and releases. Pure."""

from datetime import datetime, timedelta
from typing import Final

from control.cli.support.client import Json
from control.protocol.counts import counted
from control.protocol.findings import Finding, Level

SOON: Final = timedelta(days=30)
CLOCKS_DIFFER: Final = timedelta(minutes=1)
NAMED: Final = 5
"""Maximum items that one finding names; the rest are counted."""


def named(names: list[str]) -> str:
    """Join names into a text, naming the first few of many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def time(text: str) -> datetime:
    """Parse a time from control."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def ready_findings(ready: Json, told: list[str]) -> list[Finding]:
    """Judge `GET /readyz`, without what other checks report: deletions on hold, and the notes in `told`."""
    return [Finding("control", "ok", f"control is {ready['status']}")] + [
        Finding("control", "note", note, "skerry status")
        for note in ready.get("notes", [])
        if note not in told and not note.startswith("no artifact is deleted")
    ]


def clock_findings(read_at: datetime, now: datetime) -> list[Finding]:
    """Compare the clocks; `read_at` is a time that control reported a few seconds ago."""
    apart = read_at - now
    if abs(apart) < CLOCKS_DIFFER:
        return [Finding("clock", "ok", "this machine's clock goes with control's")]
    side = "behind" if apart > timedelta() else "ahead of"
    text = f"this machine's clock is {abs(apart.total_seconds()):.0f} s {side} control's"
    return [Finding("clock", "note", text, "timedatectl set-ntp true (on the one that is wrong)")]


def node_findings(nodes: list[Json]) -> list[Finding]:
    found: list[Finding] = []
    kinds: tuple[tuple[str, Level, str, str], ...] = (
        (
            "revoked",
            "note",
            "revoked, and still listed",
            "skerry node delete NAME (or skerry node token --rejoin NAME)",
        ),
        ("offline", "wrong", "offline", "skerry node show NAME; skerry-edge doctor on its machine"),
        ("failing", "wrong", "failing, as their last sync failed", "skerry node show NAME"),
    )
    for standing, level, what, cure in kinds:
        if names := [node["name"] for node in nodes if node["standing"] == standing]:
            found.append(Finding("nodes", level, f"nodes that are {what}: {named(names)}", cure))
    if names := [f"{n['name']} ({n['warnings'][0]['kind']})" for n in nodes if n["warnings"]]:
        found.append(Finding("nodes", "wrong", f"nodes with warnings: {named(names)}", "skerry status"))
    return found or [Finding("nodes", "ok", f"{counted(len(nodes), 'node')} online, and none fails")]


def detail_findings(details: list[Json], now: datetime) -> list[Finding]:
    """Judge the nodes that were queried one by one."""
    found = []
    for node in details:
        credential, numbers = node["credential"], node["numbers"] or {}
        if credential is not None and time(credential["return_until"]) - now < SOON:
            until = credential["return_until"]
            text = f"the credential of {node['name']}, which is {node['state']}, is good until {until}"
            again = f"skerry node token --rejoin {node['name']} (once that has passed)"
            found.append(Finding("node_credentials", "note", text, again))
        for field, what in (("certificate_ends_at", "certificate"), ("trust_ends_at", "last CA of control's")):
            ends = numbers.get(field)
            if ends and time(ends) - now < SOON:
                text = f"the {what} of {node['name']} ends at {ends}"
                found.append(Finding("node_certificates", "note", text, "skerry-edge doctor on its machine"))
    return found


def group_findings(groups: list[Json]) -> list[Finding]:
    empty = [group["name"] for group in groups if group["release"] and not group["nodes"]]
    if empty:
        text = f"groups with a release and without a node: {named(empty)}"
        return [Finding("groups", "note", text, "skerry node move NODE GROUP (or skerry group delete GROUP)")]
    return [Finding("groups", "ok", "each group with a release has nodes")]


def release_findings(fleet: Json) -> list[Finding]:
    found = [
        Finding(
            "releases",
            "wrong",
            f"all failed that came to release {release['release']} of {group['name']} in the last "
            f"{counted(fleet['minutes'], 'minute')}: {counted(release['calls'], 'call')}",
            f"skerry calls --failed --group {group['name']} (skerry rollback {group['name']})",
        )
        for group in fleet["groups"]
        for release in group["releases"]
        if release["calls"] and release["errors"] == release["calls"]
    ]
    return found or [Finding("releases", "ok", "no release has calls that all fail")]
