"""`skerry doctor`."""

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Final, TypeVar

import click

from control.cli import audit
from control.cli.doctor import access_rules, bucket_rules, certificate_rules, fleet_rules, version_rules
from control.cli.support import options, output
from control.cli.support.client import Client, Json, RequestRefused, Unreachable, path
from control.protocol import findings, settings_in_force, version
from control.protocol.findings import Finding

EXITS: Final = {"ok": 0, "note": 7, "wrong": 5}
"""Exit code by the worst level."""
MOST_DETAILED: Final = 20
"""Maximum offline or warned nodes whose credentials and certificates are requested."""
MOST_PAGES: Final = 5
"""Maximum pages of artifacts, each made by control within 5 seconds and with at most 100 of them."""
REFUSALS: Final = 100
"""Newest rows of refused authentications that are read."""
_STYLES: Final = {"wrong": "red", "note": "yellow"}

T = TypeVar("T")


@click.command()
@click.option("--verbose", is_flag=True, help="Show what is as it should be, too.")
@options.json_option
@options.asynchronous
async def command(verbose: bool, as_json: bool) -> int:
    """Look for what is wrong with control and its nodes, or will soon be, and say what to do. It changes nothing.

    An admin sees all of it. Exits with 0 if all is well, 7 if there is something to note, 5 if something is wrong.
    """
    found: list[Finding] = []
    async with options.client() as control:
        try:
            await _look(control, datetime.now(UTC), found)
        except Unreachable as error:
            found.append(_stopped(error, "; so the other checks weren't made"))
    if as_json:
        output.document(findings.document(found))
    else:
        for line in findings.lines(found, verbose=verbose):
            output.say(line, style=_STYLES.get(line.split()[0]))
    return EXITS[findings.worst(found)]


def _stopped(error: Unreachable, more: str = "") -> Finding:
    return Finding("control", "wrong", f"{str(error).rstrip('.')} [{error.code}]{more}", error.cure or "skerry status")


async def _look(control: Client, now: datetime, found: list[Finding]) -> None:
    """Make the checks in turn, adding to `found`. Raises: Unreachable, when control stops answering."""
    refused: list[str] = []

    async def read(what: str, asked: Awaitable[T]) -> T | None:
        """Return the answer; None if this operator may not ask, control is too old to support it, or it is about a
        bucket that can't be used."""
        try:
            return await asked
        except Unreachable as error:
            if not error.code.startswith(("store_", "bucket_")):
                raise
            text = f"{what} can't be looked at: {str(error).rstrip('.')} [{error.code}]"
            found.append(Finding("store", "wrong", text, "skerry artifacts show"))
            return None
        except RequestRefused as error:
            if error.code not in ("role_insufficient", "no_such_path"):
                raise
            refused.append(what)
            return None

    ready = None
    try:
        ready = await control.get("/readyz")
    except Unreachable as error:
        if error.code != "not_ready":
            raise
        # If only its bucket is missing, control answers nearly all of the following requests.
        found.append(_stopped(error))
    held = await read("certificates", control.get(path("certificates")))
    if ready is not None:
        found += fleet_rules.ready_findings(ready, [] if held is None else held["notes"])
    if held is not None:
        found += certificate_rules.certificate_findings(held)
    nodes = await control.items(path("nodes"))
    found += fleet_rules.node_findings(nodes)
    replicas, own = await read("control's replicas", control.items(path("replicas"))), version.running().short
    if replicas is not None:
        found += version_rules.replica_findings(replicas, own)
    found += version_rules.node_findings(nodes, version_rules.controls_version(replicas or [], own))
    ailing = [node for node in nodes if node["state"] == "offline" or node["warnings"]][:MOST_DETAILED]
    details = [await control.get(path("nodes", node["name"])) for node in ailing]
    found += fleet_rules.detail_findings(details, now)
    found += fleet_rules.group_findings(await control.items(path("groups")))
    if (fleet := await read("calls", control.get(path("fleet")))) is not None:
        found += fleet_rules.clock_findings(fleet_rules.time(fleet["read_at"]), now)
        found += fleet_rules.release_findings(fleet)
    if (trust := await read("nodes' trust", control.get(path("certificates", "nodes")))) is not None:
        found += certificate_rules.trust_findings(trust)
    if (store := await read("the bucket", control.get(path("artifact-store")))) is not None:
        found += bucket_rules.store_findings(store, now)
    if (trial := await read("a trial of the bucket", control.get(path("artifact-store", "trial")))) is not None:
        found += bucket_rules.trial_findings(trial)
    if (lost := await read("artifacts", _needed_artifacts(control))) is not None:
        found += bucket_rules.artifact_findings(lost)
    if (operators := await read("operators", control.items(path("operators")))) is not None:
        found += access_rules.operator_findings(operators, now)
    if (tokens := await read("join tokens", control.items(path("join-tokens"), state="open"))) is not None:
        found += access_rules.join_token_findings(tokens, now)
    if (webhooks := await read("webhooks", control.items(path("webhooks")))) is not None:
        found += access_rules.webhook_findings(webhooks)
    if (unsealed := await read("the audit log", audit.unsealed(control))) is not None:
        found += access_rules.audit_findings(unsealed)
    if (failures := await read("refusals", control.items(path("auth-failures"), most=REFUSALS))) is not None:
        found += access_rules.refusal_findings(failures, now)
    settings = await read("settings", control.items(path("settings")))
    found += access_rules.setting_findings(settings or [], settings_in_force.unknown())
    if refused:
        text = f"this operator may not read these, so they weren't looked at: {', '.join(refused)}"
        found.append(Finding("access", "note", text, "run it with an admin's token"))
    else:
        found.append(Finding("access", "ok", "this operator may read all that is looked at"))


async def _needed_artifacts(control: Client) -> Json:
    """Compare the artifacts that releases need with the bucket, by size; merge and return the first pages."""
    check = page = await control.get(path("artifact-store", "check"), bytes="false", needed="true")
    for _ in range(MOST_PAGES - 1):
        if page["next"] is None:
            break
        page = await control.get(path("artifact-store", "check"), bytes="false", needed="true", after=page["next"])
        check = check | {"looked": check["looked"] + page["looked"], "faults": check["faults"] + page["faults"]}
    return check
