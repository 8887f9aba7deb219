"""`skerry group`: the nodes that get the same releases."""

import click

from control.cli import status_watch
from control.cli.releases import reason
from control.cli.support import options, output
from control.cli.support.client import Json, path
from control.cli.support.lists import list_command
from control.protocol.command_line import CommandGroup
from control.sync.standing import STANDINGS


@click.group(cls=CommandGroup)
def command() -> None:
    """Groups: the nodes that get the same releases."""


command.add_command(
    list_command(
        "groups",
        "List the groups.",
        {
            "GROUP": "name",
            "NODES": "nodes",
            "RELEASE": lambda group: (group["release"] or {}).get("number"),
            "GENERATION": "generation",
        },
        "no groups",
    )
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
    output.shown({**fleet, "release": newest[0] if newest else None}, _details, as_json=as_json)
    if not as_json:
        for cause in fleet["failing"]:
            output.say(status_watch.cause_line(name, cause), style="red")


def _details(group: Json) -> list[tuple[str, object]]:
    release = group["release"]
    standings = ", ".join(
        f"{group['standings'][each]:,} {each.replace('_', ' ')}" for each in STANDINGS if group["standings"][each]
    )
    rows: list[tuple[str, object]] = [("group", group["name"]), ("nodes", f"{group['nodes']:,}")]
    rows += [("standing", standings), ("overdue", group["overdue"])] if group["nodes"] else []
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
    return rows


@command.command()
@click.argument("name", type=options.NAME)
@options.json_option
@options.asynchronous
async def create(name: str, as_json: bool) -> None:
    """Make a group; nodes join it by a token for it, or are moved to it."""
    async with options.client() as control:
        made = await control.post(path("groups"), {"name": name})
    output.answered(made, f"group {made['name']} is made", as_json=as_json)


@command.command()
@click.argument("name", type=options.NAME)
@options.yes_option
@options.json_option
@options.asynchronous
async def delete(name: str, yes: bool, as_json: bool) -> None:
    """Delete a group that has no nodes and no open join tokens, and that no operator has a grant for.

    Its releases leave the lists; who made them when stays in the audit log. The name can be used again.
    """
    options.confirm(f"Delete the group {name} and its releases?", yes)
    async with options.client() as control:
        await control.delete(path("groups", name))
    output.answered({"group": name, "deleted": True}, f"group {name} is deleted", as_json=as_json)
