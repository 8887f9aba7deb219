"""`skerry-edge settings`: the settings in force in the node, and where each comes from."""

from pathlib import Path
from typing import Any

import click

from edge_runtime import logs
from edge_runtime.cli.run import run_options, settings_of, shown_settings
from edge_runtime.cli.support import JSON, STATE, fail, show
from edge_runtime.web import node_socket
from edge_runtime.web.node_socket import NodeAbsent, NodeSilent


@click.command()
@STATE
@run_options
@JSON
def settings(state: Path, form: logs.Format, debug: bool, as_json: bool, **given: Any) -> None:
    """Show the settings of the node that runs on this state directory, and where each is from: the default, the
    environment, a file or a flag. Secrets aren't shown.

    Where none runs, it shows what `skerry-edge run` would have with the same flags in this environment.
    """
    runs = True
    try:
        found = node_socket.ask(state, "settings")["settings"]
    except NodeSilent as error:
        raise fail("status_unavailable", str(error), as_json) from None
    except NodeAbsent:
        runs, found = False, shown_settings(settings_of(state, given))
    if as_json:
        show({"running": runs, "settings": found})
        return
    if not runs:
        click.echo(f"No node runs on {state}. With this environment `skerry-edge run` would have:", err=True)
    widths = [max(len(setting[part]) for setting in found) for part in ("name", "value")]
    for setting in found:
        name, value = setting["name"].ljust(widths[0]), setting["value"].ljust(widths[1])
        click.echo(f"{name}  {value}  {setting['origin']}")
