"""What answers of control about nodes, groups, certificates and the store mean. Pure."""

from datetime import datetime, timedelta
from typing import Final

from control.cli.support.client import Json
from control.protocol.counts import counted
from control.protocol.findings import Finding, Level

SOON: Final = timedelta(days=30)
CLOCKS_DIFFER: Final = timedelta(minutes=1)
ACCESS_LATE: Final = timedelta(minutes=5)
"""How long revocations and joins may wait for the bucket."""
FAULTS: Final = {"missing": "missing", "wrong_size": "of another size", "wrong_bytes": "damaged"}
NAMED: Final = 5
"""Things that are named in one finding; others are counted."""


def named(names: list[str]) -> str:
    """Names as a text, the first few of many."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def time(text: str) -> datetime:
    """A time of control's."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def ready_findings(ready: Json, told: list[str]) -> list[Finding]:
    """Of `GET /readyz`. What other checks say isn't repeated: deletions that are held, and the notes in `told`."""
    return [Finding("control", "ok", f"control is {ready['status']}")] + [
        Finding("control", "note", note, "skerry status")
        for note in ready.get("notes", [])
        if note not in told and not note.startswith("no artifact is deleted")
    ]


def clock_findings(read_at: datetime, now: datetime) -> list[Finding]:
    """`read_at`: a time of control's of seconds ago."""
    apart = read_at - now
    if abs(apart) < CLOCKS_DIFFER:
        return [Finding("clock", "ok", "this machine's clock goes with control's")]
    side = "behind" if apart > timedelta() else "ahead of"
    text = f"this machine's clock is {abs(apart.total_seconds()):.0f} s {side} control's"
    return [Finding("clock", "note", text, "timedatectl set-ntp true (on the one that is wrong)")]


def certificate_findings(held: Json) -> list[Finding]:
    cure = "put others in place: docs/how-to/set-up-control.md, docs/how-to/change-the-ca.md"
    found = [Finding("certificates", "wrong", note.removeprefix("certificates: "), cure) for note in held["notes"]]
    ends = ", ".join(f"{one['what']} until {one['ends_at'][:10]} UTC" for one in held["certificates"])
    return found or [Finding("certificates", "ok", ends or "control has no certificate of its own")]


def trust_findings(trust: Json) -> list[Finding]:
    if not trust["trust"] or not trust["lacking"]:
        have = f"{trust['have']:,} of {counted(trust['nodes'], 'node')}"
        return [Finding("trust", "ok", f"control's CAs as given out are trusted by {have}")]
    names = [node["name"] for node in trust["lacking"]]
    count = trust["nodes"] - trust["have"]
    text = (
        f"{counted(count, 'node')} told of other CAs than exactly those given out, or of none yet "
        f"(which is normal for some minutes after a join, or a change of the CAs): {named(names)}"
    )
    return [Finding("trust", "note", text, "skerry ca (before one of the CAs is dropped)")]


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
    """Of the nodes that were looked at one by one."""
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


def store_findings(store: Json, now: datetime) -> list[Finding]:
    found = []
    look = "skerry artifacts show"
    if store.get("restored_at"):
        text = f"the metadata were restored, as was noticed at {store['restored_at']}, and nobody has recovered since"
        found.append(Finding("metadata", "wrong", text, "skerry recover"))
    else:
        found.append(Finding("metadata", "ok", "the metadata weren't restored, or were recovered since"))
    if store["problem"]:
        found.append(Finding("store", "wrong", f"{store['problem'].rstrip('.')} [{store['state']}]", look))
    if store["deletions"] == "held":
        text = f"no artifact is deleted since {store['held_since']}: {store['held_reason']}"
        found.append(Finding("store", "note", text, "skerry artifacts resume"))
    waits = store.get("access_waiting_since")
    if waits and now - time(waits) > ACCESS_LATE:
        late = counted(store["access_waiting"], "revocation, join or the like", "revocations, joins and the like")
        text = f"not in the bucket since {waits}: {late}: a restore of a backup of before would undo that"
        found.append(Finding("store", "wrong", text, look))
    if store["sweep_problem"]:
        found.append(Finding("store", "wrong", f"the last sweep failed: {store['sweep_problem']}", look))
    if store["keeps_versions"]:
        text = "the bucket keeps versions, so what is deleted goes on taking room"
        found.append(Finding("store", "note", text, "have a rule of the store end old versions"))
    if len(found) == 1:
        found.append(Finding("store", "ok", f"the bucket {store['bucket']} can be used"))
    return found


def artifact_findings(check: Json) -> list[Finding]:
    """Of what the bucket has of what groups' releases need; `check` has the pages that were read, as one."""
    lost = [f"{(fault['versions'] or [fault['sha256']])[0]} ({FAULTS[fault['fault']]})" for fault in check["faults"]]
    if lost:
        text = f"what releases need is lost, so no node can fetch it: {named(lost)}"
        cure = "skerry artifacts verify --repair FOLDER (a folder with the modules' files), or push them again"
        return [Finding("artifacts", "wrong", text, cure)]
    looked = f"{check['looked']:,} of {counted(check['artifacts'], 'artifact')} that releases need"
    return [Finding("artifacts", "ok", f"looked for in the bucket: {looked}; `skerry artifacts verify` reads all")]


def trial_findings(trial: Json) -> list[Finding]:
    """Of a small object that control has tried to store, read and delete."""
    if trial["problem"] is None:
        return [Finding("store", "ok", "a small object could be stored, read and deleted")]
    code = trial["code"]
    text = f"a small object couldn't be stored, read and deleted: {trial['problem'].rstrip('.')} [{code}]"
    return [Finding("store", "wrong", text, f"docs/errors.md#{code}")]
