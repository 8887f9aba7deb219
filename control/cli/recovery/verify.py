"""`skerry artifacts verify`: whether the bucket has what the metadata say, and storing again what it lacks."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from control.cli.support import options, output
from control.cli.support.client import Client, Failure, Json, path
from control.protocol.counts import counted

SHOWN = 20
"""Objects that no row knows which are named."""
FAULTS = {
    "missing": "isn't in the bucket",
    "wrong_size": "has another size in the bucket",
    "wrong_bytes": "has other bytes in the bucket",
}


@click.command()
@click.option("--quick", is_flag=True, help="Compare sizes only; else every object is read, and its sha256 compared.")
@click.option(
    "--repair",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Store again what is missing or damaged, where this folder has a file with the bytes, whatever its name.",
)
@options.json_option
@options.asynchronous
async def command(quick: bool, folder: Path | None, as_json: bool) -> None:
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
        _show(found, left)
    if left:
        cure = (
            "put the modules' files, from a build or a backup, into a folder, and run it with --repair FOLDER"
            if folder is None
            else f"{folder} has no files with these bytes: look for them elsewhere, or push the functions anew"
        )
        raise Failure(f"missing or damaged: {counted(len(left), 'artifact')}", code="artifacts_lost", cure=cure)


async def compare(control: Client, *, read: bool, quiet: bool) -> Json:
    """Compare the bucket with the metadata, with a bar on a terminal. `read`: read the objects' bytes.

    The answer has `artifacts` and `bytes` that were looked at, the `faults`, and of objects that no row knows the
    number, `unknown`, and the first ones, `unknown_objects`.
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
    """Print the objects that no row knows."""
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
    """A line about an artifact that is missing or damaged."""
    versions = ", ".join(fault["versions"]) or "no version"
    return f"{versions}: artifact {fault['sha256']} ({output.size(fault['size'])}) {FAULTS[fault['fault']]}"


def _show(found: Json, left: list[Json]) -> None:
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
    """Upload the files of a folder that faulty artifacts are made of; return their sha256.

    Raises: Failure, when control refuses one.
    """
    wanted = {fault["sha256"]: fault["size"] for fault in faults}
    repaired = []
    for file in _files(folder) if wanted else ():
        # Reading a large file for its sha256 takes long, so those of another size aren't read.
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
    """The files of a folder and of those in it."""
    for here, _folders, names in os.walk(folder):
        for name in names:
            file = Path(here, name)
            if file.is_file():
                yield file
