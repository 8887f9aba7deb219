"""`skerry data`: the databases of nodes, backed up and brought back."""

from collections.abc import Iterator

import click

from control.cli.data_copies import copy, drill
from control.cli.support import options, output
from control.cli.support.client import Json, path
from control.cli.support.lists import ago, list_command
from control.cli.support.states import second, wire_target
from control.protocol.command_line import CommandGroup
from control.protocol.counts import counted

SHOWN = 30
"""Maximum tables of which the rows are shown."""


@click.group(cls=CommandGroup)
def command() -> None:
    """Data: the databases of nodes, backed up and brought back."""


def _lag(backup: Json) -> str:
    return "" if backup["lag"] is None else output.span(backup["lag"])


def _reached(backup: Json) -> str:
    return "nothing yet" if backup["reached_at"] is None else second(backup["reached_at"])


def _state(backup: Json) -> str:
    """Return how a node's last restore stands; '' if it is over and the node goes on."""
    restore = backup["restore"]
    if restore is None or restore["state"] in ("done", "cancelled"):
        return "" if backup["interval"] else "not backed up any more"
    at = second(restore["at"])
    return {"ordered": f"goes to {at}", "held": f"held at {at}", "failed": f"failed to go to {at}"}[restore["state"]]


def _wrong(backup: Json) -> str:
    """Return what is wrong with a node's backup, and why its last restore failed."""
    restore, wrong = backup["restore"], [backup["error"]]
    if backup["drill_error"]:
        wrong.append(f"the last try to restore it failed: {backup['drill_error']}")
    if restore is not None and restore["state"] == "failed":
        code = f" [{restore['code']}]" if restore["code"] else ""
        wrong.append(f"the restore failed: {restore['message']}{code}")
    return "; ".join(text for text in wrong if text)


command.add_command(
    list_command(
        "backups",
        "List the nodes that are backed up: how far, when a restore was last proven, and what is wrong.",
        {
            "NODE": "node",
            "GROUP": "group",
            "LAG": _lag,
            "REACHED": _reached,
            "TOLD": ago("told_at"),
            "AT STORE": lambda backup: output.size(backup["at_store"]),
            "PROVEN": ago("proven_at"),
            "RESTORE": _state,
            "ERROR": _wrong,
        },
        "no node is backed up: `skerry group backup GROUP --interval 10s` begins it",
        click.option("--group", type=options.NAME, help="Only the nodes of this group."),
    )
)


@command.command()
@click.argument("node")
@click.option(
    "--to",
    required=True,
    metavar="STATE",
    help="A time (2026-12-02T10:00, or how long ago: 30m), before:RELEASE, latest, or LINEAGE/TRANSACTION.",
)
@click.option("--adopt", metavar="NODE", help="Bring the database of this other node back, and go on with it.")
@click.option("--reason", default="", help="Why, for the audit log.")
@options.plan_option
@options.yes_option
@options.json_option
@options.asynchronous
async def restore(node: str, to: str, adopt: str | None, reason: str, plan: bool, yes: bool, as_json: bool) -> None:
    """Bring a node's data, schema and functions of a time back together.

    What would be gone is shown before you are asked. The node keeps its database of now in a folder, answers calls
    again after some seconds, and is held at what it has then until `skerry data resume`: it gets no release meanwhile.
    """
    body: Json = {"to": wire_target(to)}
    if adopt is not None:
        body |= {"adopt": True, "from": adopt}
    where = path("nodes", node, "restores")
    async with options.client() as control:
        planned = await control.post(where, body, plan="true")
        if not as_json:
            for line, style in _plan(planned):
                output.say(line, style=style)
        elif plan:
            output.document(planned)
        if plan:
            return
        options.confirm(f"Bring {output.clean(planned['node'])} back to {second(planned['at'])}?", yes)
        # Exactly what was shown, or nothing.
        exactly = {"to": planned["position"], "plan_digest": planned["plan_digest"]}
        ordered = await control.post(where, {**body, **exactly, "reason": reason})
    line = (
        f"{ordered['node']} goes to {second(ordered['at'])} with its next poll, and is held there: `skerry data list` "
        f"shows it, `skerry data resume {ordered['node']}` lets it go on"
    )
    output.answered({**ordered, "plan": planned} if as_json else ordered, line, as_json=as_json)


def _plan(planned: Json) -> Iterator[tuple[str, str | None]]:
    """Return the lines of a plan, each with its style."""
    node, other = planned["node"], planned["from_node"]
    whose = f"the state of node {other}" if other else "its state"
    yield f"{node} would go to {whose} at {second(planned['at'])} ({planned['position']})", None
    release = planned["release"]
    yield f"  release there: {_release(release) if release else 'not known, or none'}", None
    for each in planned["undone"]:
        yield f"  - release {_release(each)} is undone", "red"
    yield f"  - {_lost(planned)}", "red"
    tables = planned["tables"]
    if tables is None:
        yield f"  rows by table aren't known: {planned['tables_unknown']}", "yellow"
    else:
        number = counted(len(tables), "table has", "tables have") if tables else "no table has"
        yield f"  {number} another number of rows there", None
        for table in tables[:SHOWN]:
            yield f"  {_rows(table)}", "red"
        if len(tables) > SHOWN:
            yield f"  … and {len(tables) - SHOWN} more (--json has all)", None
    for finding in planned["findings"]:
        yield f"  the state isn't whole: {finding}", "red"
    size, read = output.size(planned["size"]), output.size(planned["read"])
    yield f"  the node downloads {counted(planned['files'], 'file')} of {read}, for a database of {size}", None


def _lost(planned: Json) -> str:
    """Return what a node loses with a restore."""
    if planned["from_node"]:
        return f"all that {planned['node']} has now is gone, also what isn't at the store yet"
    if planned["newer"]:
        newer, newest = output.span(planned["newer"]), second(planned["newest_at"])
        return f"what was written since is gone: {newer} up to {newest}, and what isn't at the store yet"
    return "what isn't at the store yet is gone"


def _release(release: Json) -> str:
    return f"{release['number']} of group {release['group']}"


def _rows(table: Json) -> str:
    then, now = table["then"], table["now"]
    if now is None:
        return f"+ table {table['table']}: {counted(then, 'row')}, and now there is no such table"
    if then is None:
        return f"- table {table['table']}: isn't there; now it has {counted(now, 'row')}"
    return f"~ table {table['table']}: {counted(then, 'row')}, now {now:,}"


@command.command()
@click.argument("node")
@options.json_option
@options.asynchronous
async def resume(node: str, as_json: bool) -> None:
    """Let a node go on that is held at a restore: it gets its group's release again, with its next poll.

    A restore that the node hasn't carried out yet is cancelled.
    """
    async with options.client() as control:
        ended = await control.post(path("nodes", node, "resume"))
    what = "its restore is cancelled" if ended["state"] == "cancelled" else "it gets its group's release again"
    output.answered(ended, f"{ended['node']}: {what}", as_json=as_json)


command.add_command(drill)
command.add_command(copy)
