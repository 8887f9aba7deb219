"""`skerry recover`: after a restore of the metadata, what they lack that nodes run, and counters above that."""

import click

from control.cli import artifacts
from control.cli.support import options, output
from control.cli.support.client import Json, path
from control.protocol.counts import counted

REASONS = {
    "unknown": "with credentials that control doesn't know: made after the backup, or nobody's",
    "wrong_secret": "with credentials whose secret is another one by now",
    "revoked": "with credentials that are revoked",
}


@click.command()
@click.option("--yes", is_flag=True, help="Set the counters; else only show what is found.")
@options.json_option
@options.asynchronous
async def command(yes: bool, as_json: bool) -> None:
    """Show what restored metadata lack of what nodes run; with --yes, let the next release be taken by all nodes.

    Generations and numbers of versions go on above those that nodes have, so that no number means two things. What
    nodes run isn't changed, and nothing is released. Needs the role admin.
    """
    async with options.client() as control:
        where = path("recovery")
        found = await (control.post(where) if yes else control.get(where))
        store = await artifacts.compare(control, read=False, quiet=as_json)
    if as_json:
        output.document({"recovered": yes, **found, "store": store})
        return
    _say_when(found)
    for line in _counters(found, done=yes):
        output.say(line, style="green" if yes else "yellow")
    left = _left(found, store)
    if left:
        output.say("what is to be done by hand:" if yes else "what is then to be done by hand:", style="bold")
    for line in left:
        output.say(f"  {line}")
    artifacts.show_unknown(store)
    if not yes and (found["jump_to"] is not None or found["later_versions"] or found["restored_at"]):
        output.say("nothing was changed: `skerry recover --yes` does it")


def _say_when(found: Json) -> None:
    when, heard = found["restored_at"], found["nodes"] - found["unheard"]
    if when is not None:
        output.say(f"the metadata were restored, as was noticed {output.ago(when)}", style="bold")
    since = "since" if when is not None else "in the last minute"
    nodes, were = counted(found["nodes"], "node"), "was" if found["nodes"] == 1 else "were"
    output.say(f"{heard} of {nodes} {were} heard of {since}; the others' state is that of the backup")


def _counters(found: Json, *, done: bool) -> list[str]:
    """Return a line for each counter that recovering sets."""
    goes = "goes on" if done else "would go on"
    lines = []
    if found["jump_to"] is not None:
        nodes = counted(sum(group["nodes"] for group in found["ahead"]), "node")
        groups = ", ".join(group["name"] for group in found["ahead"])
        lines.append(
            f"generations: {nodes} (of {groups}) completed up to {found['jump_to']}, control was at "
            f"{found['generation']} and {goes} above"
        )
    for later in found["later_versions"]:
        lines.append(
            f"versions of {later['name']}: nodes run {later['version']}, control knew {later['known']} and {goes} above"
        )
    return lines or ["no node is ahead of the metadata: no counter is to be set"]


def _left(found: Json, store: Json) -> list[str]:
    """Return a line for each task that only a person can do."""
    lines = []
    for change in found["unknown_changes"]:
        what = "with another text than the registered one" if change["registered"] else "that isn't registered"
        cure = (
            "look at which text is right" if change["registered"] else "register its text again (`skerry schema add`)"
        )
        lines.append(
            f"schema change {change['number']}, {what}, is on {counted(change['nodes'], 'node')}, such as "
            f"{change['node']}: {cure}; sha256 {change['checksum']}"
        )
    for version in found["unknown_versions"]:
        why = "made after the backup" if version["after_backup"] else "deleted, or made anew"
        lines.append(
            f"{version['name']}@{version['version']} ({why}) runs on {counted(version['nodes'], 'node')}, such as "
            f"{version['node']}: push it again (`skerry function push`); sha256 {version['sha256']}"
        )
    lines += [artifacts.fault_line(fault) + ": `skerry artifacts verify --repair`" for fault in store["faults"]]
    for group in found["behind"]:
        nodes, lack = counted(group["nodes"], "node"), "doesn't" if group["nodes"] == 1 else "don't"
        lines.append(
            f"{nodes} of {group['name']} {lack} run its release {group['release']}: make a new release of what "
            "they are to run (`skerry release create`, which shows its --plan)"
        )
    for node in found["not_believed"]:
        lines.append(
            f"node {node['name']} says that it completed generation {node['generation']}, which can't be: look at that "
            "machine, and have it join again (`skerry node token --rejoin`)"
        )
    for refused in found["refused"]:
        lines.append(
            f"{refused['address']} was refused {counted(refused['count'], 'time')} {REASONS[refused['reason']]}, last "
            f"{output.ago(refused['last_at'])}"
        )
    return lines
