"""`skerry audit`: who changed what, whether the log is intact, and who was refused."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import click
import msgspec

from control import audit_chain
from control.audit_chain import AuditSeal, ChainBroken, WholeChain
from control.cli.support import options, output
from control.cli.support.client import Client, Failure, Json, path
from control.cli.support.lists import list_command
from control.protocol.command_line import CommandGroup
from control.protocol.counts import counted

LATE_MINUTES = int(audit_chain.LATE.total_seconds() // 60)
UNSEALED_MINUTES = 5


class HashType(click.ParamType[str, str]):
    """A hash that `skerry audit verify` has printed; '' for none."""

    name = "hash"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = value.strip().lower()
        if not re.fullmatch("(?:[0-9a-f]{64})?", text):
            self.fail(f"{value!r} is no head: it is 64 hex digits, as an earlier run printed them", param, ctx)
        return text


HASH = HashType()


@click.group(cls=CommandGroup)
def command() -> None:
    """The audit log and the refused authentications."""


def _actor(row: Json) -> str:
    return row["actor"] if row["actor_kind"] == "operator" else f"{row['actor_kind']} {row['actor']}"


def _change(row: Json) -> str:
    """Return the values that differ, as text: name: before → after."""
    before, after = row["before"], row["after"]
    return ", ".join(f"{name}: {_value(before, name)} → {_value(after, name)}" for name in {**before, **after})


def _value(values: Json, name: str) -> str:
    value = values.get(name)
    return "-" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


command.add_command(
    list_command(
        "audit",
        "List who changed what, newest first.",
        {
            "AT": "at",
            "ACTOR": _actor,
            "ADDRESS": "address",
            "ACTION": "action",
            "TARGET": "target",
            "CHANGE": _change,
        },
        "nothing",
        click.option("--actor", help="Changes by this operator, node, or part of control."),
        click.option("--target", help="Changes of this, such as a node's name, NAME@VERSION, GROUP/NUMBER."),
        click.option("--action", help="Changes of this kind, such as release.create."),
        click.option(
            "--since",
            type=options.TIME,
            help="Not before this time (2026-11-27, 2026-11-27T18:00, or 2d, 3h, 30m ago).",
        ),
        click.option("--until", type=options.TIME, help="Before this time."),
        newest=True,
    )
)


@command.command()
@click.option(
    "--head", type=HASH, default="", metavar="HASH", help="A hash that an earlier run printed: it must be in the chain."
)
@options.json_option
@options.asynchronous
async def verify(head: str, as_json: bool) -> None:
    """Check that no row of the audit log was removed, changed or added since it was sealed.

    Every hash is computed here, from the rows that control sends. Whoever can write to the metadata database can also
    make a new chain: keep the hash that this prints where they can't change it, and give it as --head the next time.
    """
    async with options.client() as control:
        whole = await _verify(control, head)
        late = await unsealed(control)
    if as_json:
        output.document({**msgspec.to_builtins(whole), "unsealed": late})
        return
    if late:
        output.say(
            f"rows that are older than {UNSEALED_MINUTES} minutes have no seal, so that a change of them wouldn't "
            "show: control's monitor doesn't come to it; its log says why"
        )
    if whole.newest_at is None:
        output.say("no row of the audit log has a seal yet: the first one is made within a minute")
        return
    rows, seals = counted(whole.rows, "row"), counted(whole.seals, "seal")
    output.say(f"whole: {rows} under {seals}, the newest made {whole.newest_at.isoformat()}")
    if whole.cut_until is not None:
        output.say(f"rows up to {whole.cut_until.isoformat()} were deleted by their age (SKERRY_LOG_RETENTION)")
    if whole.late:
        output.say(
            f"a time that is more than {LATE_MINUTES} minutes before that of rows sealed earlier: "
            f"{counted(whole.late, 'row')}, added later than it says, or a clock was wrong then. The first is "
            f"{whole.first_late} "
            "(`skerry audit list --json` has the ids)"
        )
    output.say(f"head {whole.head}")
    output.note(
        "keep the head outside of control; `skerry audit verify --head HASH` then says whether it is still there"
    )


command.add_command(
    list_command(
        "auth-failures",
        "List refused authentications, counted by minute, address and reason.",
        {"MINUTE": "minute", "ADDRESS": "address", "REASON": "reason", "COUNT": "count"},
        "none",
        name="failures",
        newest=True,
    )
)


async def _verify(control: Client, head: str) -> WholeChain:
    """Verify the chain, with `head` in it. Raises: Failure audit_broken, when the log isn't intact."""

    async def seals(after: int) -> AsyncIterator[AuditSeal]:
        async for item in _each(control, "seals", after):
            yield msgspec.convert(item, AuditSeal)

    while True:
        first = await control.get(path("audit", "seals"), limit=1)
        try:
            return await audit_chain.verify(seals, lambda after: _each(control, "sealed", after), head)
        except ChainBroken as broken:
            # Rows that were deleted for their age during the read are no fault.
            if (await control.get(path("audit", "seals"), limit=1))["items"] == first["items"]:
                raise Failure(f"the audit log isn't whole: {broken}", code="audit_broken") from None


async def unsealed(control: Client) -> bool:
    """Return whether a row that should be sealed by now has no seal, judging by the newest such row."""
    until = datetime.now(UTC) - timedelta(minutes=UNSEALED_MINUTES)
    newest = (await control.get(path("audit"), until=output.rfc3339(until), limit=1))["items"]
    return any(row["seal"] is None for row in newest)


async def _each(control: Client, what: str, after: int) -> AsyncIterator[Json]:
    """Yield the items of a list that begins after a seal, holding one page at a time."""
    cursor = None
    while True:
        page = await control.get(path("audit", what), after=after, cursor=cursor, limit=1000)
        for item in page["items"]:
            yield item
        cursor = page.get("next")
        if cursor is None:
            return
