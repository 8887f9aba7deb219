"""`skerry settings`: the settings that control has, and where they are from."""

import click

from control.cli.support import options, output
from control.cli.support.client import path


@click.command()
@options.json_option
@options.asynchronous
async def command(as_json: bool) -> None:
    """Show the settings of the replica that answers, without secrets."""
    async with options.client() as control:
        found = await control.items(path("settings"))
    if as_json:
        output.document(found)
        return
    output.table(["SETTING", "VALUE", "FROM"], [[s["name"], s["value"], s["origin"]] for s in found], "none")
