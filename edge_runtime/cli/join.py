"""`skerry-edge join`: becoming a node of a control plane."""

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edge_runtime import wal
from edge_runtime.cli import joined_data
from edge_runtime.cli.joined_data import BroughtBack
from edge_runtime.cli.support import JSON, STATE, check_owner, fail, show
from edge_runtime.errors import CodedError
from edge_runtime.state import StateUnfit
from edge_runtime.sync import identity
from edge_runtime.sync.attempt import text
from edge_runtime.sync.identity import Identity
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
@click.option("--without-data", is_flag=True, help="Begin with an empty database, whatever the node's backup has.")
@JSON
def join_command(
    state: Path,
    control_url: str,
    token: str,
    name: str | None,
    labels: tuple[str, ...],
    ca: Path | None,
    again: bool,
    without_data: bool,
    as_json: bool,
) -> None:
    """Become a node of a control plane, with a one-time token.

    Where the state directory has no database and the node has a backup, its database is brought back from that. Until
    that is done the node doesn't start.

    An answer that got lost loses nothing, and neither does a download that broke off: run the same command again.
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
    made = _identity_without_data(state) if not again else None
    if made is None:
        wanted = not without_data and not (state / wal.FILE).exists()
        try:
            name = name or (_name_there(state) if again else None) or _host_name()
            made = asyncio.run(join(state, control_url, token, name, pairs, ca=ca, again=again, await_data=wanted))
        except JoinFailed as failed:
            raise fail(failed.code, failed.message, as_json) from None
    if not as_json:
        click.echo(f"Joined {made.control_url} as node {made.name} ({made.node_id}) in the group {made.group}.")
    back = _data(state, made, without_data, as_json)
    if as_json:
        show(
            {
                **{"node_id": made.node_id, "name": made.name, "group": made.group, "control": made.control_url},
                "restored": None if back is None else _told(back),
            }
        )
        return
    if back is not None:
        for line in _lines(back):
            click.echo(line)
    click.echo(f"Start it with: skerry-edge run --state {state}")


def _identity_without_data(state: Path) -> Identity | None:
    """Return the identity of a node that has joined, and only lacks its database."""
    if not joined_data.awaited(state):
        return None
    try:
        return identity.read(state)
    except identity.NotJoined:
        return None


def _data(state: Path, made: Identity, without: bool, as_json: bool) -> BroughtBack | None:
    """Bring the node's database back, if it has none and there is a backup. Raises: click's, when that fails."""
    if not joined_data.awaited(state):
        return None
    try:
        if without:
            joined_data.give_up(state)
            return None
        return asyncio.run(joined_data.bring_back(state.absolute(), made))
    except StateUnfit as error:
        raise fail("node_running", str(error), as_json) from None
    except (CodedError, ValueError, OSError) as error:
        code = error.code if isinstance(error, CodedError) else "restore_failed"
        text = (
            f"the node has joined, but its database isn't back, and it doesn't start before that: "
            f"{str(error).rstrip('.')}. Run the same command again, which goes on where it was, or with --without-data "
            "to begin with an empty database"
        )
        raise fail(code, text, as_json) from None


def _told(back: BroughtBack) -> dict[str, Any]:
    return {
        "at": text(back.at),
        "bytes": back.bytes,
        "release": back.release or None,
        "functions_lacking": back.lacking or None,
    }


def _lines(back: BroughtBack) -> Iterator[str]:
    """Say what was brought back, and what a backup doesn't have."""
    release = f"release {back.release}" if back.release else "no release"
    yield f"Its database is back as it was at {text(back.at)}: {back.bytes:,} bytes, with {release}."
    if back.lacking:
        yield f"Functions are still lacking, and come with the first sync: {back.lacking}"
    yield "A backup has no files of secrets, callers, tokens and TLS: put those in their places before you start it."


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
