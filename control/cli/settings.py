"""`skerry settings`: the settings of control, or of this command itself, and their sources."""

import os

import click

from control.cli.support import client, logins, options, output
from control.cli.support.client import Json, path
from control.protocol.settings_in_force import HIDDEN


@click.command()
@click.option("--own", is_flag=True, help="What this command goes by itself: which control, by which token and CA.")
@options.json_option
@options.asynchronous
async def command(own: bool, as_json: bool) -> None:
    """Show the settings of the replica that answers, without secrets, and where each is from."""
    if own:
        found = _own()
    else:
        async with options.client() as control:
            found = await control.items(path("settings"))
    output.listed(found, {"SETTING": "name", "VALUE": "value", "FROM": "origin"}, "none", as_json=as_json)


def _own() -> list[Json]:
    """Return the settings of the command line, as `in_force` does for control; `file`: that of `skerry up` or a
    login."""
    found = client.connection_settings()
    values = {
        "SKERRY_CA": str(found.ca or ""),
        "SKERRY_EDGE_URL": found.edge,
        "SKERRY_HOME": str(logins.local_home(client.HOME_FILE)),
        "SKERRY_TOKEN": HIDDEN,
        "SKERRY_URL": found.url,
    }

    def origin(name: str, value: str) -> str:
        if os.environ.get(name):
            return "environment"
        return "file" if value and name != "SKERRY_HOME" else "default"

    return [{"name": name, "value": value, "origin": origin(name, value)} for name, value in values.items()]
