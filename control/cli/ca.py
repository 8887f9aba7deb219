"""`skerry ca`: the CAs that control distributes, and which nodes don't have them yet."""

import click

from control.cli.status import certificate_lines
from control.cli.support import options, output
from control.cli.support.client import Json, NotConverged, path
from control.protocol.counts import counted

NAMED = 20
"""Maximum nodes that are named to a person."""


@click.command()
@click.option("--check", is_flag=True, help="Exit with 5 unless all nodes trust the CAs that control gives out now.")
@options.json_option
@options.asynchronous
async def command(check: bool, as_json: bool) -> None:
    """Show the CAs by which nodes trust control, when they end, and which nodes don't have them yet.

    Ask with --check before control's certificate is moved to a new CA, and before the old CA is dropped.
    """
    async with options.client() as control:
        held = await control.get(path("certificates"))
        nodes = await control.get(path("certificates", "nodes"))
    if as_json:
        output.document({**held, "nodes": nodes})
    else:
        _show(held, nodes)
    lacking = nodes["nodes"] - nodes["have"]
    if check and lacking:
        raise NotConverged(
            f"without the CAs yet: {lacking:,} of {counted(nodes['nodes'], 'node')}: {_names(nodes)}",
            code="not_converged",
        )


def _show(held: Json, nodes: Json) -> None:
    authorities = [one for one in held["certificates"] if one["what"] == "ca"]
    output.listed(
        authorities,
        {
            "CA": "name",
            "FINGERPRINT (SHA256)": "sha256",
            "UNTIL": lambda one: f"{one['ends_at'][:10]} UTC ({output.ago(one['ends_at'])})",
        },
        "control gives out no CA (SKERRY_CA_CERT): nodes trust what their system trusts",
        as_json=False,
    )
    for line, style in certificate_lines(
        {**held, "certificates": [o for o in held["certificates"] if o not in authorities]}
    ):
        output.say(line, style=style)
    if not authorities:
        return
    output.say(f"trusted by {nodes['have']:,} of {counted(nodes['nodes'], 'node')}")
    if nodes["lacking"]:
        output.say(f"not yet: {_names(nodes)}", style="yellow")
        output.say(
            "they take them by themselves within minutes when they poll; until then leave the old CA where it is, or "
            "they come back only while control shows a certificate that the old CA has cross-signed",
            style="yellow",
        )


def _names(nodes: Json) -> str:
    named = [
        node["name"] + (" (offline)" if node["state"] == "offline" else "" if node["trust"] else " (didn't say)")
        for node in nodes["lacking"][:NAMED]
    ]
    more = nodes["nodes"] - nodes["have"] - len(named)
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
