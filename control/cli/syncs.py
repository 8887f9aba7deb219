"""`skerry syncs`: the log of syncs."""

import click

from control.cli.support import options, output
from control.cli.support.client import path
from control.protocol.command_line import CommandGroup


@click.group(cls=CommandGroup)
def command() -> None:
    """The log of the nodes' syncs."""


@command.command("list")
@click.option("--node", help="Only this node's.")
@click.option(
    "--status",
    type=click.Choice(["running", "succeeded", "failed", "expired", "superseded"]),
    help="Only the syncs in this state.",
)
@options.limit_option
@options.json_option
@options.asynchronous
async def list_syncs(node: str | None, status: str | None, limit: int, as_json: bool) -> None:
    """List the newest syncs."""
    async with options.client() as control:
        found = await control.items(path("syncs"), most=limit, node=node, status=status)
    if as_json:
        output.document(found)
        return
    output.table(
        ["NODE", "RELEASE", "GENERATION", "STATUS", "STEP", "STARTED", "ENDED", "FOLDED", "ERROR"],
        [
            [
                s["node"],
                s.get("release"),
                s["generation"],
                s["status"],
                s.get("step"),
                output.ago(s["started_at"]),
                output.ago(s["ended_at"]) if s.get("ended_at") else "",
                s["folded"] or "",
                f"{s['error']['message']} [{s['error']['code']}]" if s.get("error") else "",
            ]
            for s in found
        ],
        "no syncs",
    )
