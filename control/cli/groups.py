"""`skerry group`: the nodes that get the same releases."""

from pathlib import Path

import click

from control.cli import status_watch
from control.cli.releases import reason
from control.cli.support import options, output, releasing, rollout_policy
from control.cli.support.client import Client, Json, path
from control.cli.support.lists import list_command
from control.protocol.command_line import CommandGroup, DurationType
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
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--none", "no_policy", is_flag=True, help="Take the group's policy away: its releases go out at once.")
@options.json_option
@options.asynchronous
async def policy(name: str, file: Path | None, no_policy: bool, as_json: bool) -> None:
    """Show how a group's releases go out, or set it by FILE, which is TOML with a table [rollout].

    Open rollouts go on as they began. A single release can have its own: `skerry release create --policy`.
    """
    if file is not None and no_policy:
        raise click.UsageError("FILE sets a policy, and --none takes it away: give one of them")
    given = None if file is None else rollout_policy.read(file)
    where = path("groups", name, "policy")
    async with options.client() as control:
        if given is not None:
            await control.put(where, given)
            output.answered({"group": name, "policy": given}, f"group {name} has the policy of {file}", as_json=as_json)
            return
        if no_policy:
            await control.delete(where)
        found = None if no_policy else await _policy(control, name)
    text = f"group {name} has no policy: its releases go out at once, after a rehearsal if they change the schema"
    shown = text if found is None else rollout_policy.as_toml(found).rstrip()
    output.answered({"group": name, "policy": found}, shown, as_json=as_json)


async def _policy(control: Client, name: str) -> Json | None:
    """Return a group's policy. Raises: RequestRefused, when there is no such group, or the operator may not see it."""
    await releasing.floor_of(control, name)
    found = {group["name"]: group["policy"] for group in await control.items(path("groups"))}
    policy: Json | None = found.get(name)
    return policy


@command.command()
@click.argument("name", type=options.NAME)
@click.option(
    "--interval",
    type=DurationType(least=1, most=86_400),
    help="Upload so often while somebody writes, such as 10s or 1m.",
)
@click.option("--retention", type=DurationType(least=3600, whole=True), help="Keep each state so long, such as 30d.")
@click.option("--off", is_flag=True, help="Upload nothing any more; what is at the store stays there.")
@options.json_option
@options.asynchronous
async def backup(name: str, interval: float | None, retention: float | None, off: bool, as_json: bool) -> None:
    """Show how the databases of a group's nodes are backed up, or set it.

    What isn't given stays as it is; at first a node uploads every 10 seconds, and each state is kept for 30 days.
    """
    given: Json = {}
    if interval is not None:
        given["interval"] = interval
    if retention is not None:
        given["retention"] = int(retention)
    if off and given:
        raise click.UsageError("--off ends the backups: give nothing else with it")
    where = path("groups", name, "backup")
    async with options.client() as control:
        if off:
            await control.delete(where)
            found = None
        else:
            await releasing.floor_of(control, name)
            groups = {group["name"]: group["backup"] for group in await control.items(path("groups"))}
            found = groups.get(name)
            if given:
                found = await control.put(where, {**(found or {}), **given})
    text = f"the databases of group {name} aren't backed up"
    if found is not None:
        interval_text, kept = output.span(found["interval"]), output.span(found["retention"])
        text = f"the databases of group {name} are backed up every {interval_text}, and each state is kept for {kept}"
    output.answered({"group": name, "backup": found}, text, as_json=as_json)


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
