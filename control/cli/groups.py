"""`skerry group`: the nodes that get the same releases."""

import click

from control.cli.releases import reason
from control.cli.support import fleet_watch, options, output
from control.cli.support.client import path
from control.protocol.command_line import CommandGroup
from control.sync.standing import STANDINGS


@click.group(cls=CommandGroup)
def command() -> None:
    """Groups: the nodes that get the same releases."""


@command.command("list")
@options.json_option
@options.asynchronous
async def list_groups(as_json: bool) -> None:
    """List the groups."""
    async with options.client() as control:
        found = await control.items(path("groups"))
    if as_json:
        output.document(found)
        return
    output.table(
        ["GROUP", "NODES", "RELEASE", "GENERATION"],
        [[g["name"], g["nodes"], (g["release"] or {}).get("number"), g["generation"]] for g in found],
        "no groups",
    )


@command.command()
@click.argument("name", type=options.NAME)
@options.json_option
@options.asynchronous
async def show(name: str, as_json: bool) -> None:
    """Show a group: its release, how its nodes stand, and why some fail."""
    async with options.client() as control:
        newest = await control.items(path("releases"), most=1, group=name)
        fleet = (await control.get(path("fleet"), group=name))["groups"][0]
    release = newest[0] if newest else None
    if as_json:
        output.document({**fleet, "release": release})
        return
    standings = ", ".join(
        f"{fleet['standings'][each]:,} {each.replace('_', ' ')}" for each in STANDINGS if fleet["standings"][each]
    )
    rows: list[tuple[str, object]] = [("group", name), ("nodes", f"{fleet['nodes']:,}")]
    rows += [("standing", standings), ("overdue", fleet["overdue"])] if fleet["nodes"] else []
    if release is None:
        rows.append(("release", "none yet"))
    else:
        rows += [
            ("release", f"{release['number']} (generation {release['generation']})"),
            ("schema", release["schema_floor"]),
            ("functions", output.functions(release["functions"]) or "none"),
            ("created", f"{output.ago(release['created_at'])} by {release['created_by']}"),
            ("reason", reason(release)),
        ]
    output.pairs(rows)
    for cause in fleet["failing"]:
        output.say(fleet_watch.cause_line(name, cause), style="red")


@command.command()
@click.argument("name", type=options.NAME)
@options.json_option
@options.asynchronous
async def create(name: str, as_json: bool) -> None:
    """Make a group; nodes join it by a token for it, or are moved to it."""
    async with options.client() as control:
        made = await control.post(path("groups"), {"name": name})
    if as_json:
        output.document(made)
    else:
        output.say(f"group {made['name']} is made")


@command.command()
@click.argument("name", type=options.NAME)
@click.option("--yes", is_flag=True, help="Don't ask.")
@options.json_option
@options.asynchronous
async def delete(name: str, yes: bool, as_json: bool) -> None:
    """Delete a group that has no nodes and no open join tokens, and that no operator has a grant for.

    Its releases leave the lists; who made them when stays in the audit log. The name can be used again.
    """
    if not yes:
        click.confirm(f"Delete the group {name} and its releases?", abort=True, err=True)
    async with options.client() as control:
        await control.delete(path("groups", name))
    if as_json:
        output.document({"group": name, "deleted": True})
    else:
        output.say(f"group {name} is deleted")
