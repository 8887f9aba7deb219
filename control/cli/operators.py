"""`skerry operator`: who may use control, with which rights, and until when."""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from control.access.rights import Role
from control.cli.support import options, output
from control.cli.support.client import Json, path
from control.cli.support.lists import ago, list_command
from control.protocol import wire
from control.protocol.command_line import CommandGroup, DurationType

F = TypeVar("F", bound=Callable[..., Any])
DURATION = DurationType(whole=True)


class GrantType(click.ParamType[Json, str]):
    """A role, for all groups or, as ROLE@GROUP, for one."""

    name = "role[@group]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Json:
        if isinstance(value, dict):
            return value
        role, at, group = value.partition("@")
        if role not in get_args(Role):
            self.fail(f"{role!r} is no role: {', '.join(get_args(Role))}", param, ctx)
        if at and not wire.NAME.fullmatch(group):
            self.fail(f"{group!r} is no group's name", param, ctx)
        return {"role": role, "group": group or None, "functions": None}


@click.group(cls=CommandGroup)
def command() -> None:
    """Operators: people and scripts with a token, roles, and perhaps an end."""


def rights_options(function: F) -> F:
    """Add the options that `add` and `change` share."""
    function = click.option("--expires-in", type=DURATION, help="When the token ends, from now: 90d, 12h.")(function)
    function = click.option(
        "--function",
        "functions",
        type=options.NAME,
        multiple=True,
        help="The functions that the role push is for; may be given again. Without it: all.",
    )(function)
    return click.option(
        "--role",
        "roles",
        type=GrantType(),
        multiple=True,
        help="read looks; push pushes functions and releases them; deploy changes functions, schema, releases and "
        "groups; admin also nodes and operators. With @GROUP, in that group alone. May be given again.",
    )(function)


@command.command()
@click.argument("name", type=options.NAME)
@rights_options
@options.json_option
@options.asynchronous
async def add(
    name: str, roles: tuple[Json, ...], functions: tuple[str, ...], expires_in: int | None, as_json: bool
) -> None:
    """Add an operator and print the token, which is shown only once."""
    if not roles:
        raise click.UsageError("give a --role, such as read, or deploy@shops-north")
    body: Json = {"name": name, "grants": _grants(roles, functions)}
    if expires_in is not None:
        body["expires_in"] = expires_in
    async with options.client() as control:
        made = await control.post(path("operators"), body)
    if as_json:
        output.document(made)
        return
    output.say(made["token"])
    output.note(f"the token of {made['name']} ({granted(made)}): control keeps only its hash, so store it now")
    if made["expires_at"] is not None:
        output.note(f"it is good until {made['expires_at']}")


def granted(operator: Json) -> str:
    """Return an operator's grants as they are written in options."""
    return ", ".join(
        g["role"]
        + (f"@{g['group']}" if g["group"] else "")
        + (f" ({', '.join(g['functions'])})" if g["functions"] else "")
        for g in operator["grants"]
    )


command.add_command(
    list_command(
        "operators",
        "List the operators, what they may, and when they end.",
        {
            "OPERATOR": "name",
            "MAY": granted,
            "ENDS": lambda operator: operator["expires_at"] or "never",
            "LAST USED": ago("last_used_at"),
            "CREATED": ago("created_at"),
        },
        "no operators",
    )
)


@command.command()
@click.argument("name", type=options.NAME)
@options.json_option
@options.asynchronous
async def show(name: str, as_json: bool) -> None:
    """Show what an operator may, until when, and when it was last heard of."""
    async with options.client() as control:
        found = await control.get(path("operators", name))
    output.shown(found, _details, as_json=as_json)


def _details(operator: Json) -> list[tuple[str, object]]:
    person = operator.get("person")
    return [
        ("operator", operator["name"]),
        ("id", operator["id"]),
        ("may", granted(operator)),
        ("ends", operator["expires_at"] or "never"),
        ("last used", output.ago(operator["last_used_at"])),
        ("created", operator["created_at"]),
        *([("old token until", operator["old_token_ends_at"])] if operator["old_token_ends_at"] else []),
        *([("signs in by", f"{person['issuer']}, as {person['name']}")] if person else []),
    ]


@command.command()
@click.argument("name", type=options.NAME)
@click.option(
    "--keep-old",
    type=DURATION,
    default="0s",
    show_default=True,
    help="How long the old token, and who has signed in by it, stay good: 1h.",
)
@options.yes_option
@options.json_option
@options.asynchronous
async def rotate(name: str, keep_old: int, yes: bool, as_json: bool) -> None:
    """Exchange an operator's token for another one, and print it: it is shown only once.

    The old one ends at once, or after --keep-old, and with it the sessions that began before.
    """
    options.confirm(f"End the token of operator {name} now, and who has signed in by it?", yes or bool(keep_old))
    async with options.client() as control:
        made = await control.post(path("operators", name, "rotate"), {"keep_old": keep_old})
    if as_json:
        output.document(made)
        return
    output.say(made["token"])
    output.note(f"the new token of {name}: control keeps only its hash, so store it now")
    output.note(f"the old one {f'ends in {output.span(keep_old)}' if keep_old else 'is refused from now on'}")


@command.command()
@click.argument("name", type=options.NAME)
@rights_options
@click.option("--no-end", is_flag=True, help="The token doesn't end any more.")
@options.json_option
@options.asynchronous
async def change(
    name: str,
    roles: tuple[Json, ...],
    functions: tuple[str, ...],
    expires_in: int | None,
    no_end: bool,
    as_json: bool,
) -> None:
    """Change what an operator may, or when it ends; its token stays.

    Roles take the place of those that it has. What isn't given stays as it is.
    """
    if no_end and expires_in is not None:
        raise click.UsageError("--no-end and --expires-in say different things: give one of them")
    body: Json = {}
    if roles or functions:
        body["grants"] = _grants(roles, functions)
    if expires_in is not None:
        body["expires_in"] = expires_in
    if no_end:
        body["endless"] = True
    if not body:
        raise click.UsageError("there is nothing to change: give --role, --expires-in or --no-end")
    async with options.client() as control:
        changed = await control.post(path("operators", name, "change"), body)
    line = f"{name}: {granted(changed)}; ends {changed['expires_at'] or 'never'}"
    output.answered(changed, line, as_json=as_json)


@command.command()
@click.argument("name", type=options.NAME)
@options.yes_option
@options.json_option
@options.asynchronous
async def revoke(name: str, yes: bool, as_json: bool) -> None:
    """Revoke an operator's token, and the join tokens that it made."""
    options.confirm(f"Revoke the token of operator {name}?", yes)
    async with options.client() as control:
        await control.delete(path("operators", name))
    line = f"{name}: the token is refused from now on"
    output.answered({"name": name, "revoked": True}, line, as_json=as_json)


def _grants(roles: tuple[Json, ...], functions: tuple[str, ...]) -> list[Json]:
    """Return the grants for a request. Raises: UsageError, when functions are given without the role push."""
    if functions and not any(g["role"] == "push" for g in roles):
        raise click.UsageError("--function is for the role push: give --role push, or push@GROUP")
    return [{**g, "functions": list(functions)} if functions and g["role"] == "push" else g for g in roles]
