"""`skerry webhook`: URLs that events are sent to, and the delivery of each message."""

import asyncio
from typing import IO

import click

from control.cli.support import options, output
from control.cli.support.client import Client, Failure, Json, path
from control.cli.support.lists import ago, list_command
from control.protocol.command_line import CommandGroup, DurationType
from control.protocol.wire import EVENT_KINDS

LOOK_EVERY = 0.5
"""Seconds between two checks whether a test message was sent."""


@click.group(cls=CommandGroup, renamed={"remove": "delete"})
def command() -> None:
    """Webhooks: URLs that events are sent to as signed JSON."""


@command.command()
@click.argument("name", type=options.NAME)
@click.argument("url")
@click.option(
    "--event",
    "kinds",
    type=click.Choice(EVENT_KINDS),
    multiple=True,
    help="A kind of event that it gets; may be given again. Without it: all.",
)
@click.option(
    "--secret-file",
    type=click.File("r"),
    metavar="FILE",
    help="A file with the secret to sign with (- is stdin): whsec_ and 24 to 64 bytes as base64. Without it, control "
    "makes one.",
)
@options.json_option
@options.asynchronous
async def add(name: str, url: str, kinds: tuple[str, ...], secret_file: IO[str] | None, as_json: bool) -> None:
    """Add a webhook and print the secret that its messages are signed with, which is shown only once."""
    body: Json = {"name": name, "url": url, "kinds": list(kinds)}
    if secret_file is not None:
        body["secret"] = secret_file.read().strip()
    async with options.client() as control:
        made = await control.post(path("webhooks"), body)
    if as_json:
        output.document(made)
        return
    if made["secret"] is not None:
        output.say(made["secret"])
        output.note(
            f"the secret of {name}, which isn't shown again: give it to the receiver, which checks messages by it"
        )
    output.note(f"try it: skerry webhook test {name}")


command.add_command(
    list_command(
        "webhooks",
        "List the webhooks, and how many of their messages wait and were given up.",
        {
            "WEBHOOK": "name",
            "URL": "url",
            "EVENTS": lambda webhook: ", ".join(webhook["kinds"]) or "all",
            "STATE": lambda webhook: "ended by its receiver (410)" if webhook["ended_at"] else "on",
            "WAITING": "waiting",
            "GIVEN UP": "given_up",
            "CREATED": ago("created_at"),
        },
        "no webhooks",
    )
)


@command.command()
@click.argument("name", type=options.NAME)
@options.yes_option
@options.json_option
@options.asynchronous
async def delete(name: str, yes: bool, as_json: bool) -> None:
    """Delete a webhook, with the messages that wait for it."""
    options.confirm(f"Delete the webhook {name}, with the messages that wait for it?", yes)
    async with options.client() as control:
        await control.delete(path("webhooks", name))
    # Under both names, since scripts may read the old one.
    output.answered({"name": name, "deleted": True, "removed": True}, f"{name}: deleted", as_json=as_json)


@command.command()
@click.argument("name", type=options.NAME)
@click.option(
    "--timeout",
    "within",
    type=DurationType(1, plain=True),
    default="60s",
    show_default=True,
    help="How long to wait for its first attempt.",
)
@options.json_option
@options.asynchronous
async def test(name: str, within: float, as_json: bool) -> None:
    """Send a message to a webhook, and say what its receiver answered."""
    async with options.client() as control:
        made = await control.post(path("webhooks", name, "test"))
        try:
            async with asyncio.timeout(within):
                found = await _attempted(control, name, made["id"])
        except TimeoutError:
            raise Failure(
                f"no attempt was made within {within:g} s",
                cure=f"look at `skerry webhook deliveries --webhook {name}` later, and at control's logs",
            ) from None
    if as_json:
        output.document(found)
    elif found["state"] == "delivered":
        output.say(f"{name}: delivered, the receiver answered {found['status']}")
    if found["state"] != "delivered":
        again = "it is tried again for a day, at growing intervals"
        gone = "it isn't tried again: `skerry webhook list` says whether the webhook has ended"
        raise Failure(f"{name}: {found['error']}", cure=again if found["state"] == "waiting" else gone)


command.add_command(
    list_command(
        "webhook-deliveries",
        "List messages and what became of them, newest first: what was given up is listed for seven days.",
        {
            "AT": "created_at",
            "WEBHOOK": "webhook",
            "EVENT": "kind",
            "TIMES": "times",
            "STATE": lambda delivery: delivery["state"].replace("_", " "),
            "ATTEMPTS": "attempts",
            "NEXT": lambda delivery: output.ago(delivery["next_at"]) if delivery["next_at"] else "-",
            "LAST ANSWER": lambda delivery: delivery["error"] or delivery["status"],
            "MESSAGE": "id",
        },
        "no messages",
        click.option("--webhook", type=options.NAME, help="Messages to this webhook."),
        click.option(
            "--state",
            type=click.Choice(["waiting", "delivered", "given-up"]),
            callback=lambda _context, _option, state: state and state.replace("-", "_"),
            help="Messages that are in this state.",
        ),
        name="deliveries",
        newest=True,
    )
)


async def _attempted(control: Client, webhook: str, id: str) -> Json:
    """Wait until a delivery attempt was made for a message, and return the delivery."""
    while True:
        found = await control.items(path("webhook-deliveries"), most=100, webhook=webhook)
        for delivery in found:
            if delivery["id"] == id and (delivery["attempts"] or delivery["state"] != "waiting"):
                return delivery
        await asyncio.sleep(LOOK_EVERY)
