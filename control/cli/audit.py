"""`skerry audit`: who did what, and who was refused."""

import click

from control.cli.support import options, output
from control.cli.support.client import path


@click.group()
def command() -> None:
    """The audit log and the refused authentications."""


@command.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many.")
@options.json_option
@options.asynchronous
async def list_audit(limit: int, as_json: bool) -> None:
    """List what operators did, newest first."""
    async with options.client() as control:
        found = await control.items(path("audit"), most=limit)
    if as_json:
        output.document(found)
        return
    output.table(
        ["AT", "ACTOR", "ADDRESS", "ACTION", "TARGET"],
        [[a["at"], a["actor"], a["address"], a["action"], a["target"]] for a in found],
        "nothing yet",
    )


@command.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many.")
@options.json_option
@options.asynchronous
async def failures(limit: int, as_json: bool) -> None:
    """List refused authentications, counted by minute, address and reason."""
    async with options.client() as control:
        found = await control.items(path("auth-failures"), most=limit)
    if as_json:
        output.document(found)
        return
    output.table(
        ["MINUTE", "ADDRESS", "REASON", "COUNT"],
        [[a["minute"], a["address"], a["reason"], a["count"]] for a in found],
        "none",
    )
