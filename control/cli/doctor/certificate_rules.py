"""Rules for control's answers about its certificates and about nodes' trust in its CAs. Pure."""

from control.cli.doctor.fleet_rules import named
from control.cli.support.client import Json
from control.protocol.counts import counted
from control.protocol.findings import Finding


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
