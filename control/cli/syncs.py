"""`skerry syncs`: the log of syncs."""

import click

from control.cli.support import output
from control.cli.support.lists import ago, list_command
from control.protocol.command_line import CommandGroup


@click.group(cls=CommandGroup)
def command() -> None:
    """The log of the nodes' syncs."""


command.add_command(
    list_command(
        "syncs",
        "List the newest syncs.",
        {
            "NODE": "node",
            "RELEASE": lambda sync: sync.get("release"),
            "GENERATION": "generation",
            "STATUS": "status",
            "STEP": lambda sync: sync.get("step"),
            "STARTED": ago("started_at"),
            "ENDED": lambda sync: output.ago(sync["ended_at"]) if sync.get("ended_at") else "",
            "FOLDED": lambda sync: sync["folded"] or "",
            "ERROR": lambda sync: f"{sync['error']['message']} [{sync['error']['code']}]" if sync.get("error") else "",
        },
        "no syncs",
        click.option("--node", help="Only this node's."),
        click.option(
            "--status",
            type=click.Choice(["running", "succeeded", "failed", "expired", "superseded"]),
            help="Only the syncs in this state.",
        ),
        newest=True,
    )
)
