"""`skerry-edge join`: becoming a node of a control plane."""

import asyncio
import re
import socket
from pathlib import Path

import click

from edge_runtime.cli.support import JSON, STATE, check_owner, fail, show
from edge_runtime.sync import identity
from edge_runtime.sync.join import JoinFailed, join


@click.command("join")
@STATE
@click.option("--control", "control_url", required=True, help="https://HOST:PORT of control.")
@click.option(
    "--token",
    envvar="SKERRY_JOIN_TOKEN",
    show_envvar=True,
    required=True,
    help="The one-time token of `skerry node token`; better in SKERRY_JOIN_TOKEN, which other users can't see.",
)
@click.option(
    "--name", default=None, help="The node's name (default: with --again the name that it has, else the host's)."
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Told to control; may be repeated.")
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of the authority of control's certificate, where neither the token nor the system knows it.",
)
@click.option("--again", is_flag=True, help="Exchange the identity that is there already for a new one.")
@JSON
def join_command(
    state: Path,
    control_url: str,
    token: str,
    name: str | None,
    labels: tuple[str, ...],
    ca: Path | None,
    again: bool,
    as_json: bool,
) -> None:
    """Become a node of a control plane, with a one-time token.

    An answer that got lost loses nothing: run the same command again.
    """
    pairs = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{label!r} isn't KEY=VALUE", param_hint="--label")
        pairs[key] = value
    # Before the token is sent: it works only once. A missing folder is created, for this user.
    if state.exists():
        check_owner(state, as_json)
    try:
        name = name or (_name_there(state) if again else None) or _host_name()
        made = asyncio.run(join(state, control_url, token, name, pairs, ca=ca, again=again))
    except JoinFailed as failed:
        raise fail(failed.code, failed.message, as_json) from None
    if as_json:
        show({"node_id": made.node_id, "name": made.name, "group": made.group, "control": made.control_url})
    else:
        click.echo(f"Joined {made.control_url} as node {made.name} ({made.node_id}) in the group {made.group}.")
        click.echo(f"Start it with: skerry-edge run --state {state}")


def _name_there(state: Path) -> str | None:
    """Return the name of the node that the state directory belongs to, if that can be read."""
    try:
        return identity.read(state).name
    except identity.NotJoined:
        return None


def _host_name() -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:63]
    if not name:
        raise click.UsageError("the host's name can't be a node's: give --name")
    return name
