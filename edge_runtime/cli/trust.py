"""`skerry-edge trust`."""

import asyncio
import re
from pathlib import Path

import click

from edge_runtime import files
from edge_runtime.cli.support import JSON, STATE, check_owner, fail, show
from edge_runtime.sync import identity, join
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer, control_base

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@click.command()
@click.argument("fingerprint")
@STATE
@JSON
def trust(fingerprint: str, state: Path, as_json: bool) -> None:
    """Trust control by the CA with this FINGERPRINT, which `skerry ca` shows; the node's identity stays.

    For a node that was away while control's CA was changed, and doesn't trust control's certificate any more. The CA is
    fetched from control, and kept only if control can be reached by it. A node that runs goes on with it by itself.
    """
    fingerprint = fingerprint.replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise click.BadParameter("a fingerprint has 64 hex digits; `skerry ca` shows it", param_hint="FINGERPRINT")
    check_owner(state, as_json)
    try:
        who = identity.read(state)
    except identity.NotJoined as error:
        raise fail("identity_unreadable", str(error), as_json) from None
    try:
        asyncio.run(_change(state, who, fingerprint))
    except join.JoinFailed as failed:
        message = failed.message
        if failed.code == "ca_mismatch":
            message = (
                f"{who.control_url} gives out no CA with the fingerprint {fingerprint}: look at `skerry ca` again; if "
                "it is the right one, someone stands in between. Nothing was changed"
            )
        raise fail(failed.code, message, as_json) from None
    except (NoAnswer, ControlRefused) as error:
        raise fail(error.code, f"{error.message}. Nothing was changed", as_json) from None
    except OSError as error:
        raise fail("state_unusable", f"the CA can't be written to {state}: {error}", as_json) from None
    if as_json:
        show({"control": who.control_url, "fingerprint": fingerprint})
    else:
        click.echo(f"{who.name} trusts {who.control_url} by the CA {fingerprint} from now on.")


async def _change(state: Path, who: identity.Identity, fingerprint: str) -> None:
    pem = await join.fetch_authority(control_base(who.control_url), fingerprint)
    candidate = state / "ca.pem.named"
    files.write(candidate, pem.encode(), 0o644)
    try:
        async with ControlClient(who.control_url, candidate, who.credential) as client:
            await client.authorities()
    finally:
        files.remove(candidate)
    files.write(state / "ca.pem", pem.encode(), 0o644)
