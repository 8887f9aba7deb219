"""`skerry artifacts`: the bucket of artifacts: which control owns it, and whether anything is deleted from it."""

import os

import click

from control.cli.recovery import verify
from control.cli.support import options, output
from control.cli.support.client import Json, path
from control.protocol.command_line import CommandGroup
from control.protocol.counts import counted

RECOVER = "`skerry recover` shows what they lack of what nodes run"
ACCESS_LATE = 60.0
"""Seconds after which what isn't in the bucket's access lists is told; control writes them every few seconds."""
AUDIT_NAME = "cli"
"""The actor in the audit log when a bucket is taken over: that needs the database's URL, and no operator's token."""


@click.group(cls=CommandGroup)
def command() -> None:
    """The bucket of artifacts: which control owns it, whether all is in it, and what is deleted from it."""


command.add_command(verify.command, "verify")


@command.command()
@options.json_option
@options.asynchronous
async def show(as_json: bool) -> None:
    """Show the bucket's owner and whether deletions from it are held."""
    async with options.client() as control:
        found = await control.get(path("artifact-store"))
    if as_json:
        output.document(found)
        return
    output.say(f"bucket {found['bucket']} of control {found['owner'] or '(none yet)'}, step {found['counter']}")
    for line in trouble(found) or ["in order"]:
        output.say(f"  {line}")


@command.command()
@options.yes_option
@options.json_option
@options.asynchronous
async def resume(yes: bool, as_json: bool) -> None:
    """Resume deletions from the bucket, which are held after a restore of the metadata, for example.

    Artifacts that these metadata don't need are deleted then: restore a newer backup first, if there is one.
    """
    async with options.client() as control:
        found = await control.get(path("artifact-store"))
        if found["deletions"] == "held":
            options.confirm(f"{output.clean(found['held_reason'])}.\nLet deletions go on?", yes)
        found = await control.post(path("artifact-store", "resume"))
    output.answered(found, f"deletions from bucket {found['bucket']} go on", as_json=as_json)


@command.command("take-over")
@options.yes_option
@options.json_option
@options.asynchronous
async def take_over(yes: bool, as_json: bool) -> None:
    """Make this control (SKERRY_METADATA_URL) the owner of the bucket (SKERRY_ARTIFACTS_URL), whoever owns it now.

    The control that owned it stops being ready, and doesn't start again with this bucket. Nothing is deleted
    from the bucket until `skerry artifacts resume`.
    """
    # Imported here: they take half a second, which the other commands needn't spend.
    from control import settings
    from control.cli.support.startup_errors import startup_errors
    from control.clock import SystemClock
    from control.storage import database, migrations, object_store, owner_mark
    from control.storage.bucket_owner import Ownership

    with startup_errors("do both services run, and are their URLs right?"):
        given = settings.from_environment(os.environ)
        db = await database.connect(given.metadata_url, connections=2)
        try:
            await migrations.check(db)
            async with object_store.connect(given) as bucket:
                if not yes:
                    there = await bucket.read(owner_mark.KEY)
                    says = "" if there is None else output.clean(there.data.decode(errors="replace"))
                    what = f"says: {says}" if says else "has no owner"
                    click.confirm(f"Bucket {bucket.bucket} {what}\nTake it over?", abort=True, err=True)
                before = await Ownership(db, bucket, SystemClock()).take_over(AUDIT_NAME)
        finally:
            await db.close()
    if as_json:
        output.document({"bucket": bucket.bucket, "taken_over": before.taken_over, "before": before.owner or None})
    elif before.taken_over:
        output.say(f"bucket {bucket.bucket} is this control's; deletions are held until `skerry artifacts resume`")
    else:
        output.say(f"bucket {bucket.bucket} is this control's already")


def trouble(found: Json) -> list[str]:
    """A line for each thing that is wrong with the bucket; none where it is in order."""
    lines = []
    if found.get("restored_at"):
        lines.append(f"the metadata were restored, as was noticed {output.ago(found['restored_at'])}: {RECOVER}")
    if found["problem"]:
        lines.append(f"{found['problem']} [{found['state']}]")
    if found["deletions"] == "held":
        since = output.ago(found["held_since"])
        lines.append(f"nothing is deleted since {since}: {found['held_reason']} (`skerry artifacts resume` ends that)")
    waiting_since = found.get("access_waiting_since")
    if waiting_since and output.seconds_since(waiting_since) > ACCESS_LATE:
        waiting = counted(found["access_waiting"], "revocation, join or the like", "revocations, joins and the like")
        lines.append(
            f"not in the bucket since {output.ago(waiting_since)}: {waiting}: a restore of a backup of before would "
            "undo that"
        )
    if found["sweep_problem"]:
        lines.append(f"the last sweep failed: {found['sweep_problem']}")
    if found["unknown_objects"]:
        objects = counted(found["unknown_objects"], "object")
        lines.append(f"known to no row: {objects}; what is so goes by itself after some days")
    if found["keeps_versions"]:
        lines.append("the bucket keeps versions: what is deleted goes on taking room until a rule of the store ends it")
    return lines
