"""Rules for control's answers about the bucket, the artifacts in it, and restored metadata. Pure."""

from datetime import datetime, timedelta
from typing import Final

from control.cli.doctor.fleet_rules import named, time
from control.cli.support.client import Json
from control.protocol.counts import counted
from control.protocol.findings import Finding

ACCESS_LATE: Final = timedelta(minutes=5)
"""How long revocations and joins may wait to be written to the bucket."""
FAULTS: Final = {"missing": "missing", "wrong_size": "of another size", "wrong_bytes": "damaged"}


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
    """Judge which artifacts of the groups' releases the bucket has; `check` is the merged pages that were read."""
    lost = [f"{(fault['versions'] or [fault['sha256']])[0]} ({FAULTS[fault['fault']]})" for fault in check["faults"]]
    if lost:
        text = f"what releases need is lost, so no node can fetch it: {named(lost)}"
        cure = "skerry artifacts verify --repair FOLDER (a folder with the modules' files), or push them again"
        return [Finding("artifacts", "wrong", text, cure)]
    looked = f"{check['looked']:,} of {counted(check['artifacts'], 'artifact')} that releases need"
    return [Finding("artifacts", "ok", f"looked for in the bucket: {looked}; `skerry artifacts verify` reads all")]


def trial_findings(trial: Json) -> list[Finding]:
    """Judge control's attempt to store, read and delete a small object."""
    if trial["problem"] is None:
        return [Finding("store", "ok", "a small object could be stored, read and deleted")]
    code = trial["code"]
    text = f"a small object couldn't be stored, read and deleted: {trial['problem'].rstrip('.')} [{code}]"
    return [Finding("store", "wrong", text, f"docs/errors.md#{code}")]
