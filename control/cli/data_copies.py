"""`skerry data drill` and `skerry data copy`: proving the backup of one node now, and getting its data as a file."""

from pathlib import Path

import click

from control.cli.support import options, output
from control.cli.support.client import BACKUP_SECONDS, Failure, Json, path
from control.cli.support.states import second, wire_target
from control.protocol.counts import counted


class NotProven(Failure):
    """A drill has found that a backup doesn't work."""


@click.command()
@click.argument("node")
@options.json_option
@options.asynchronous
async def drill(node: str, as_json: bool) -> None:
    """Prove a node's backup now: restore its latest state at control's side, check it, and run its release's probes.

    Control does that by itself, with each backup in turn. Exit status 1: it isn't proven.
    """
    async with options.client() as control:
        found = await control.call("POST", path("nodes", node, "drill"), seconds=BACKUP_SECONDS)
    if as_json:
        output.document(found)
    else:
        for line in _found(found):
            output.say(output.clean(line))
    if not found["proven"]:
        text = f"the backup of {found['node']} doesn't work: {found['findings'][0]}"
        cure = "run `skerry data list`, and look at the node's log; earlier states may work: `skerry data copy --at`"
        raise NotProven(text, code="backup_damaged", cure=cure)


def _found(found: Json) -> list[str]:
    """Return what a drill has found, a line each."""
    lines = []
    if found["transaction"]:
        size, read = output.size(found["size"]), output.size(found["read"])
        release = f"release {found['release']}" if found["release"] else "no release"
        passed = counted(found["probes"], "probe")
        lines.append(f"{found['node']}: restored as of {second(found['at'])}: {size}, of {read} from the store")
        if found["proven"]:
            lines.append(f"  it is whole, has {release}, and {passed} passed")
    return lines + [f"  wrong: {text}" for text in found["findings"]] + [f"  {text}" for text in found["untried"]]


@click.command()
@click.argument("node")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--at",
    default="latest",
    show_default=True,
    metavar="STATE",
    help="A time (2026-12-02T10:00, or how long ago: 30m), before:RELEASE, latest, or LINEAGE/TRANSACTION.",
)
@options.json_option
@options.asynchronous
async def copy(node: str, file: Path, at: str, as_json: bool) -> None:
    """Write a node's database, as it was at a time, to a new FILE, from its backup: the node isn't asked.

    Any SQLite opens the file. It has all that the node's functions have written.
    """
    async with options.client() as control:
        headers = await control.download(path("nodes", node, "data"), file, at=wire_target(at))
    size, state = file.stat().st_size, headers["skerry-state-at"]
    wrong = headers.get("skerry-findings", "")
    said = {"file": str(file), "bytes": size, "at": state, "position": headers["skerry-position"], "findings": wrong}
    output.answered(said, f"{file}: {output.size(size)}, as of {second(state)}", as_json=as_json)
    if wrong and not as_json:
        output.say(f"  the database isn't whole: {output.clean(wrong)}")
