"""`skerry artifacts`: the artifact bucket: which control owns it, whether it is complete, and what is deleted."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from control.cli.support import options, output
from control.cli.support.client import Client, Failure, Json, path
from control.protocol.command_line import CommandGroup
from control.protocol.counts import counted

RECOVER = "`skerry recover` shows what they lack of what nodes run"
ACCESS_LATE = 60.0
"""Seconds after which changes missing from the bucket's access lists are reported; control writes them every few
seconds."""
AUDIT_NAME = "cli"
"""The actor in the audit log when a bucket is taken over, which needs the database's URL and no operator's token."""
SHOWN = 20
"""Maximum objects without a row that are named."""
FAULTS = {
    "missing": "isn't in the bucket",
    "wrong_size": "has another size in the bucket",
    "wrong_bytes": "has other bytes in the bucket",
}


@click.group(cls=CommandGroup)
def command() -> None:
    """The bucket of artifacts: which control owns it, whether all is in it, and what is deleted from it."""


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
    """Return a line for each problem with the bucket, [] if there is none."""
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


@command.command()
@click.option("--quick", is_flag=True, help="Compare sizes only; else every object is read, and its sha256 compared.")
@click.option(
    "--repair",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Store again what is missing or damaged, where this folder has a file with the bytes, whatever its name.",
)
@options.json_option
@options.asynchronous
async def verify(quick: bool, folder: Path | None, as_json: bool) -> None:
    """Compare the bucket with the metadata: what is missing, damaged, or known to no row.

    Exits with 1 where an artifact is missing or damaged, and wasn't repaired. Needs the role admin.
    """
    async with options.client() as control:
        found = await compare(control, read=not quick, quiet=as_json)
        repaired = [] if folder is None else await _repair(control, found["faults"], folder)
    found["repaired"] = repaired
    left = [fault for fault in found["faults"] if fault["sha256"] not in repaired]
    if as_json:
        output.document(found)
    else:
        _show_compared(found, left)
    if left:
        cure = (
            "put the modules' files, from a build or a backup, into a folder, and run it with --repair FOLDER"
            if folder is None
            else f"{folder} has no files with these bytes: look for them elsewhere, or push the functions anew"
        )
        raise Failure(f"missing or damaged: {counted(len(left), 'artifact')}", code="artifacts_lost", cure=cure)


async def compare(control: Client, *, read: bool, quiet: bool) -> Json:
    """Compare the bucket with the metadata, with a progress bar on a terminal. `read`: read the objects' bytes.

    The answer has how many `artifacts` and `bytes` were checked, the `faults`, and how many objects have no row
    (`unknown`), with the first of those (`unknown_objects`).
    """
    found: Json = {"artifacts": 0, "bytes": 0, "faults": [], "unknown": 0, "unknown_objects": []}
    where, objects = path("artifact-store", "check"), path("artifact-store", "unknown")
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        console=output.console(error=True),
        transient=True,
        disable=quiet or not output.console(error=True).is_terminal,
    )
    with bar:
        task: TaskID | None = None
        after: str | None = None
        while True:
            page = await control.get(where, after=after, bytes=None if read else "false")
            task = bar.add_task("artifacts", total=page["artifacts"]) if task is None else task
            bar.advance(task, page["looked"])
            found["artifacts"] += page["looked"]
            found["bytes"] += page["looked_size"]
            found["faults"] += page["faults"]
            after = page["next"]
            if after is None:
                break
        task = bar.add_task("objects", total=None)
        while True:
            page = await control.get(objects, after=after)
            bar.advance(task, page["looked"])
            found["unknown"] += len(page["unknown"])
            found["unknown_objects"] += page["unknown"][: SHOWN - len(found["unknown_objects"])]
            after = page["next"]
            if after is None:
                return found


def show_unknown(found: Json) -> None:
    """Print the objects without a row."""
    if not found["unknown"]:
        return
    objects = counted(found["unknown"], "object")
    output.say(f"known to no row of the metadata: {objects} of the bucket:", style="yellow")
    for item in found["unknown_objects"]:
        output.say(f"  {item['key']}, {output.size(item['size'])}, of {output.ago(item['modified'])}")
    if found["unknown"] > len(found["unknown_objects"]):
        output.say(f"  and {counted(found['unknown'] - len(found['unknown_objects']), 'other')}")
    output.say("  they stay for SKERRY_UNKNOWN_OBJECTS_KEPT (a week), and longer while deletions are held")


def fault_line(fault: Json) -> str:
    """Describe in one line an artifact that is missing or damaged."""
    versions = ", ".join(fault["versions"]) or "no version"
    return f"{versions}: artifact {fault['sha256']} ({output.size(fault['size'])}) {FAULTS[fault['fault']]}"


def _show_compared(found: Json, left: list[Json]) -> None:
    for fault in found["faults"]:
        if fault in left:
            output.say(fault_line(fault), style="red")
        else:
            output.say(f"{fault_line(fault)}: stored again", style="green")
    show_unknown(found)
    whole = found["artifacts"] - len(left)
    of = f"{whole:,} of {counted(found['artifacts'], 'artifact')} ({output.size(found['bytes'])})"
    output.say(f"in the bucket as pushed: {of}")


async def _repair(control: Client, faults: list[Json], folder: Path) -> list[str]:
    """Upload the files in a folder that have the bytes of faulty artifacts; return their sha256.

    Raises: Failure, when control refuses one.
    """
    wanted = {fault["sha256"]: fault["size"] for fault in faults}
    repaired = []
    for file in _files(folder) if wanted else ():
        # Reading a large file for its sha256 takes long, so files of other sizes aren't read.
        try:
            if file.stat().st_size not in wanted.values():
                continue
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            output.note(f"{file} can't be read: {error.strerror or error}", style="yellow")
            continue
        if wanted.pop(sha256, None) is not None:
            await control.upload(path("artifacts", sha256), file, lambda _count: None)
            repaired.append(sha256)
        if not wanted:
            break
    return repaired


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and in its subfolders."""
    for here, _folders, names in os.walk(folder):
        for name in names:
            file = Path(here, name)
            if file.is_file():
                yield file
