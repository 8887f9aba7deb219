"""`skerry rollout`: how releases go out, in steps, and what people do about it."""

import sys
from collections.abc import Callable
from typing import Any

import click
from rich.live import Live

from control.cli.support import options, output, rehearsals, rollout_following, rollout_views, undoing
from control.cli.support.client import Client, Json, path
from control.cli.support.lists import ago, list_command
from control.protocol.command_line import CommandGroup
from control.protocol.counts import counted

ALL = "all"


@click.group(cls=CommandGroup)
def command() -> None:
    """Rollouts: releases that are rehearsed on the nodes' own data, and go out in steps that stop by themselves.

    Each command is about a group's newest rollout, unless --number names the release of another.
    """


command.add_command(
    list_command(
        "rollouts",
        "List the newest rollouts.",
        {
            "GROUP": "group",
            "RELEASE": "number",
            "STATE": lambda rollout: rollout_views.word(rollout["state"]),
            "STEP": lambda rollout: rollout_views.place(rollout).removeprefix("step "),
            "STARTED": lambda rollout: f"{rollout['started']:,} of {rollout['nodes']:,}",
            "WAITS FOR": "waits_for",
            "BY": "made_by",
            "MADE": ago("made_at"),
            "REASON": "reason",
        },
        "no rollouts: a group with a policy (`skerry group policy`), or --policy with a release, makes one",
        click.option("--group", type=options.NAME, help="Only the rollouts of this group."),
        newest=True,
    )
)


def rollout_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the group, and the number of the release where it isn't the group's newest rollout."""
    number = click.option(
        "--number", type=click.IntRange(min=1), metavar="N", help="The release; the group's newest rollout without it."
    )
    return click.argument("group", type=options.NAME, default="default")(number(function))


@command.command()
@rollout_arguments
@click.option("--follow", is_flag=True, help="Show it until it ends; exit with 5 if it doesn't end as done.")
@click.option(
    "--nodes",
    "nodes",
    is_flag=False,
    flag_value=ALL,
    type=click.Choice([ALL, *rollout_views.NODE_COUNTS]),
    help="Show its nodes instead, all or those of an outcome.",
)
@click.option(
    "--rehearsal",
    "rehearsed",
    is_flag=False,
    flag_value=ALL,
    type=click.Choice([ALL, *rehearsals.OUTCOMES]),
    help="Show what nodes found in its rehearsal instead, all or those of an outcome.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="So many nodes, or of each outcome of the rehearsal; the others are counted. --json has all.",
)
@options.json_option
@options.asynchronous
async def status(
    group: str,
    number: int | None,
    follow: bool,
    nodes: str | None,
    rehearsed: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Show where the rollout of GROUP (default) stands: its steps, what its gates saw, and what it waits for."""
    if (nodes is not None) + (rehearsed is not None) + follow > 1:
        raise click.UsageError("--follow, --nodes and --rehearsal show different things: give one of them")
    async with options.client() as control:
        release = number or await rollout_following.newest(control, group)
        if nodes is not None:
            where = path("rollouts", group, release, "nodes")
            found = await control.items(where, outcome=None if nodes == ALL else nodes)
            _show_nodes(found, limit, as_json=as_json)
        elif rehearsed is not None:
            where = path("rollouts", group, release, "rehearsal")
            found = await control.items(where, outcome=None if rehearsed == ALL else rehearsed)
            output.document(found) if as_json else rehearsals.show(found, limit)
        elif follow:
            rollout_following.check(await _follow(control, group, release, number, as_json))
        else:
            rollout = await control.get(path("rollouts", group, release))
            if as_json:
                output.document(rollout)
            else:
                output.console().print(rollout_views.drawn(rollout, number))


def _show_nodes(nodes: list[Json], limit: int, *, as_json: bool) -> None:
    output.listed(nodes if as_json else nodes[:limit], NODES, "no such nodes", as_json=as_json)
    if len(nodes) > limit and not as_json:
        output.say(f"{counted(len(nodes) - limit, 'more node')} (--limit shows more)")


NODES: output.Columns = {
    "NODE": "name",
    "OUTCOME": lambda node: rollout_views.word(node["outcome"]),
    "STEP": "step",
    "STARTED": lambda node: output.ago(node["started_at"]) if node["started_at"] else "",
    "REACHED": lambda node: output.ago(node["reached_at"]) if node["reached_at"] else "",
    "ERROR": lambda node: f"{node['error_message']} [{node['error_code']}]" if node["error_code"] else "",
}
"""The columns shown for each node of a rollout."""


async def _follow(control: Client, group: str, release: int, number: int | None, as_json: bool) -> Json:
    """Show a rollout until it has ended: redrawn in a terminal, elsewhere by lines, with `as_json` only at the end."""
    until = rollout_following.ended
    if as_json:
        silent = rollout_following.RolloutProgress(control, quiet=True)
        found = await rollout_following.follow(control, group, release, silent, until=until)
        output.document(found)
        return found
    if not sys.stdout.isatty():
        lines = rollout_following.RolloutProgress(control)
        return await rollout_following.follow(control, group, release, lines, until=until)
    with Live(console=output.console(), auto_refresh=False, vertical_overflow="visible") as live:

        async def redraw(rollout: Json) -> None:
            live.update(rollout_views.drawn(rollout, number), refresh=True)

        return await rollout_following.follow(control, group, release, redraw, until=until)


def act_command(act: str, text: str, *more: Callable[..., Any]) -> click.Command:
    """Return the command of an operator's act on a rollout; `text` is its help, `more` further options of it."""

    @options.asynchronous
    async def run(
        group: str,
        number: int | None,
        reason: str,
        plan: bool,
        as_json: bool,
        yes: bool = True,
        everything: bool = False,
        data: bool = False,
    ) -> None:
        async with options.client() as control:
            release = number or await rollout_following.newest(control, group)
            rollout = await control.get(path("rollouts", group, release))
            would = rollout_views.would(act, rollout, everything=everything)
            undo = await control.get(path("rollouts", group, release, "undo")) if data else None
            if undo is not None and not as_json:
                undoing.show(undo)
            if plan:
                planned = {"act": act, "would": would, "rollout": rollout} | ({} if undo is None else {"undo": undo})
                output.answered(planned, would, as_json=as_json)
                return
            if rollout_views.is_asked(act, rollout, everything=everything):
                verb = "Roll back" if act == "rollback" else act.capitalize()
                options.confirm(f"{verb} {rollout_views.name(rollout)}, so that {would}?", yes)
            body: Json = {"reason": reason} | ({"all": True} if everything else {}) | ({"data": True} if data else {})
            if act == "promote" and not everything:
                # Nobody has confirmed the step after this one.
                body["step"] = rollout["step"]
            done = await control.post(path("rollouts", group, release, act), body)
            output.answered(done, f"{rollout_views.name(done)}: {rollout_views.standing(done)}", as_json=as_json)

    made: Callable[..., Any] = run
    reason = click.option("--reason", default="", help="Why, for the ones who read the audit log later.")
    for option in (options.json_option, *reversed(more), reason, options.plan_option, rollout_arguments):
        made = option(made)
    return click.command(act, help=text)(made)


command.add_command(
    act_command(
        "pause",
        "Start no further node of GROUP (default) until the rollout is resumed; started nodes go on to the release.",
    )
)
command.add_command(
    act_command(
        "resume",
        "Let a paused rollout go on. What made it pause is accepted: nodes that have failed so far, or what the "
        "rehearsal found. Gates measure from now on.",
        options.yes_option,
    )
)
command.add_command(
    act_command(
        "promote",
        "Leave out the rest of the step, be it a rehearsal, a bake, a pause or a gate, or give the approval that it "
        "waits for.",
        click.option("--all", "everything", is_flag=True, help="Leave out all steps: start all nodes that are left."),
        options.yes_option,
    )
)
command.add_command(
    act_command(
        "abort",
        "End the rollout where it is. Nodes that run the release keep it, started ones that don't go back to the "
        "group's release, and new nodes get that one.",
        options.yes_option,
    )
)
command.add_command(
    act_command(
        "retry",
        "Begin an aborted rollout again, with the rehearsal. Nodes that run the release already keep it.",
    )
)
command.add_command(
    act_command(
        "rollback",
        "Take all nodes back, at once, to the functions that the group had before: a new release, as `skerry rollback` "
        "makes it. The schema and the rows that functions have written stay, unless --data takes them back too.",
        undoing.data_option,
        options.yes_option,
    )
)
