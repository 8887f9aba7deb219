"""`skerry operator`: who may ask control for what."""

import click

from control.cli.support import options, output
from control.cli.support.client import path


@click.group()
def command() -> None:
    """Operators: people and scripts with a token and a role."""


@command.command()
@click.argument("name", type=options.NAME)
@click.option(
    "--role",
    type=click.Choice(["read", "deploy", "admin"]),
    required=True,
    help="read looks; deploy changes functions, schema, releases and groups too; admin also nodes and operators.",
)
@options.json_option
@options.asynchronous
async def add(name: str, role: str, as_json: bool) -> None:
    """Add an operator and print the token, which is shown only once."""
    async with options.client() as control:
        made = await control.post(path("operators"), {"name": name, "role": role})
    if as_json:
        output.document(made)
        return
    output.say(made["token"])
    output.note(f"the token of {made['name']} ({made['role']}): control keeps only its hash, so store it now")


@command.command("list")
@options.json_option
@options.asynchronous
async def list_operators(as_json: bool) -> None:
    """List the operators."""
    async with options.client() as control:
        found = await control.items(path("operators"))
    if as_json:
        output.document(found)
        return
    output.table(
        ["OPERATOR", "ROLE", "CREATED"],
        [[o["name"], o["role"], output.ago(o.get("created_at"))] for o in found],
        "no operators",
    )


@command.command()
@click.argument("name", type=options.NAME)
@click.option("--yes", is_flag=True, help="Don't ask.")
@options.json_option
@options.asynchronous
async def revoke(name: str, yes: bool, as_json: bool) -> None:
    """Revoke an operator's token."""
    if not yes:
        click.confirm(f"Revoke the token of operator {name}?", abort=True, err=True)
    async with options.client() as control:
        await control.delete(path("operators", name))
    if as_json:
        output.document({"name": name, "revoked": True})
    else:
        output.say(f"{name}: the token is refused from now on")
