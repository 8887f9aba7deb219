"""`skerry group`: the nodes that get the same releases."""

import click

from control.cli import options, output
from control.cli.client import path


@click.group()
def command() -> None:
    """Groups: the nodes that get the same releases."""


@command.command("list")
@options.json_option
def list_groups(as_json: bool) -> None:
    """List the groups."""
    with options.client() as control:
        found = control.items(path("groups"))
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
def create(name: str, as_json: bool) -> None:
    """Make a group; nodes join it by a token for it, or are moved to it."""
    with options.client() as control:
        made = control.post(path("groups"), {"name": name})
    if as_json:
        output.document(made)
    else:
        output.say(f"group {made['name']} is made")
