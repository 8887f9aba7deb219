"""What a node's commands share: options, output and errors, and the owner of a state directory."""

import os
import pwd
from pathlib import Path
from typing import Any

import click
import orjson

STATE = click.option(
    "--state",
    envvar="SKERRY_EDGE_STATE",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The node's state directory.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, stable for scripts.")


def fail(code: str, message: str, as_json: bool) -> click.exceptions.Exit:
    if as_json:
        show({"error": {"code": code, "message": message}})
    else:
        click.echo(f"Error: {message} [{code}]", err=True)
    return click.exceptions.Exit(1)


def show(value: dict[str, Any]) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def check_owner(state: Path, as_json: bool, *, or_root: bool = False) -> None:
    """Check that this process runs as the state directory's owner: files that another user creates there would be
    inaccessible to the node. `or_root`: nothing is created, so root may run it too. Raises: click's, when it doesn't,
    or the folder doesn't exist."""
    try:
        refusal = told_owner(state)
    except FileNotFoundError:
        told = f"there is no folder {state}: --state names the node's state directory, which `skerry-edge join` made"
        raise fail("state_unusable", told, as_json) from None
    except OSError as error:
        raise fail("state_unusable", f"the state directory {state} can't be used: {error}", as_json) from None
    if refusal and not (or_root and not os.geteuid()):
        raise fail("state_of_another_user", refusal, as_json)


def told_owner(state: Path) -> str:
    """Return why this process's user shouldn't use the state directory, which another user owns, and what to do. Empty
    if it is this user's. Raises: OSError, when the folder doesn't exist."""
    owner = state.stat().st_uid
    if owner == os.geteuid():
        return ""
    who = user_name(owner)
    given = who if who != str(owner) else f"'#{owner}'"
    return f"{state} belongs to the user {who}: run this as {who}, with `sudo -u {given} skerry-edge …`"


def user_name(user: int) -> str:
    """Return the name of a user id, or the id if it has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
