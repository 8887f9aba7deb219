"""`skerry release`: what a group's nodes should run."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from control.cli.support import options, output, rehearsals, releasing, rollout_following, rollout_views, undoing
from control.cli.support.client import Json, path
from control.cli.support.lists import ago, list_command
from control.protocol.command_line import CommandGroup
from control.protocol.counts import counted

T = TypeVar("T")


@click.group(cls=CommandGroup)
def command() -> None:
    """Releases: the functions and the schema that a group's nodes should run."""


def reason(release: Json) -> str:
    """Return why a release was made, with the release that it rolls back to."""
    back = f"rollback to {release['rollback_to']}" if release.get("rollback_to") else ""
    return ": ".join(text for text in (back, release.get("reason", "")) if text)


def rollout_state(release: Json) -> str:
    """Return the state of a release's rollout; '' if it went to all nodes at once, or control is too old to say it."""
    return rollout_views.word(release["rollout"]["state"]) if release.get("rollout") else ""


command.add_command(
    list_command(
        "releases",
        "List the newest releases.",
        {
            "GROUP": "group",
            "RELEASE": "number",
            "GENERATION": "generation",
            "SCHEMA": "schema_floor",
            "FUNCTIONS": lambda release: output.functions(release["functions"]),
            "BY": "created_by",
            "CREATED": ago("created_at"),
            "ROLLOUT": rollout_state,
            "REASON": reason,
        },
        "no releases: `skerry function push` and `skerry schema add` make one",
        click.option("--group", type=options.NAME, help="Only the releases of this group."),
        newest=True,
    )
)


@command.command()
@click.argument("number", type=click.IntRange(min=1))
@options.group_option
@options.json_option
@options.asynchronous
async def show(number: int, group: str, as_json: bool) -> None:
    """Show one release of a group."""
    async with options.client() as control:
        found = await control.get(path("releases", group, number))
    output.shown(found, _details, as_json=as_json)


def _details(release: Json) -> list[tuple[str, object]]:
    return [
        ("release", f"{release['number']} of group {release['group']} ({release['id']})"),
        ("generation", release["generation"]),
        ("schema", release["schema_floor"]),
        ("created", f"{output.ago(release['created_at'])} by {release['created_by']}"),
        ("reason", reason(release)),
        *((("rollout", rollout_state(release)),) if release.get("rollout") else ()),
        *((("data", undoing.counts(release["undo"])),) if release.get("undo") else ()),
        *(("function", f"{f['name']}@{f['version']} {f['sha256'][:12]}") for f in release["functions"]),
        # An earlier version of control doesn't return them.
        *(("change", line) for line, _ in releasing.changes(release.get("changes", {}))),
        *(("change", line) for line, _ in releasing.moved_floor(release)),
    ]


@command.command()
@click.argument("number", type=click.IntRange(min=1))
@options.group_option
@options.json_option
@options.asynchronous
async def retry(number: int, group: str, as_json: bool) -> None:
    """Let the failing nodes of a group try its newest release again now, without waiting for their next attempt."""
    async with options.client() as control:
        found = await control.post(path("releases", group, number, "retry"))
    nodes = counted(found["nodes"], "failing node")
    line = f"release {number} is tried again by {nodes} of group {group}, with the next poll"
    output.answered(found, line, as_json=as_json)


def content_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add the options that say what a release has. The command is called with `content`: fields for its body."""

    @functools.wraps(function)
    def run(
        group: str,
        versions: tuple[str, ...],
        remove: tuple[str, ...],
        schema: int | None,
        rollback_to: int | None,
        **given: Any,
    ) -> T:
        if rollback_to is not None and (versions or remove or schema is not None):
            text = "--rollback-to takes all of an earlier release: no --set, --remove or --schema with it"
            raise click.UsageError(text)
        content: Json = {"group": group}
        if versions:
            content["functions"] = dict(_version(text) for text in versions)
        if remove:
            content["remove"] = list(remove)
        if schema is not None:
            content["schema"] = schema
        if rollback_to is not None:
            content["rollback_to"] = rollback_to
        return function(content=content, **given)

    for option in (
        click.option(
            "--rollback-to", type=click.IntRange(min=1), metavar="N", help="An earlier release's functions and floor."
        ),
        options.schema_option,
        click.option("--remove", type=options.NAME, multiple=True, metavar="NAME", help="A function to take out."),
        click.option(
            "--set",
            "versions",
            multiple=True,
            metavar="NAME=VERSION",
            help="A function to have; NAME@VERSION says the same.",
        ),
        options.group_option,
    ):
        run = option(run)
    return run


@command.command()
@content_options
@options.release_options
@options.json_option
@options.asynchronous
async def create(
    content: Json,
    plan: bool,
    allowed: Json,
    rollout: Json,
    reason: str,
    waited: options.ReleaseWait | None,
    as_json: bool,
) -> None:
    """Make a release of a group: its newest one with the changes given, or an earlier one again."""
    body = {**content, "reason": reason, **allowed, **rollout}
    async with options.client() as control:
        if plan:
            release = await control.post(path("releases"), body, plan="true")
            if as_json:
                output.document(release)
            else:
                releasing.show(release, planned=True)
        else:
            release = await control.post(path("releases"), body)
            await releasing.finish(control, release, waited, as_json=as_json)


@command.command()
@content_options
@options.change_options
@options.policy_option
@options.reason_option
@click.option(
    "--no-wait", is_flag=True, help="Don't wait: `skerry rollout status --rehearsal` shows what nodes have found."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    help="So many nodes of each outcome; the others are counted. --json has all.",
)
@options.json_option
@options.asynchronous
async def rehearse(
    content: Json,
    plan: bool,
    allowed: Json,
    policy: Json,
    reason: str,
    no_wait: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Make a release, and have every online node of the group try it on a copy of its own data, while it serves on.

    No node runs the release until `skerry rollout resume` sends it out; `skerry rollout abort` drops it. Shown is what
    each node has found, by outcome: passed, failed, or unknown, as of nodes that are offline. The exit code is 5 if it
    failed on a node, or more nodes are unknown than the policy allows.
    """
    body = {**content, "reason": reason, **allowed, **policy, "rehearsal_only": True}
    async with options.client() as control:
        if plan:
            planned = await control.post(path("releases"), body, plan="true")
            output.document(planned) if as_json else releasing.show(planned, planned=True)
            return
        release = await control.post(path("releases"), body)
        if not as_json:
            releasing.show(release)
        if no_wait:
            if as_json:
                output.document(release)
            else:
                output.say(f"  `skerry rollout status {release['group']} --rehearsal` shows what nodes have found")
            return
        group, number = release["group"], release["number"]
        progress = rollout_following.RolloutProgress(control, quiet=as_json)
        rollout = await rollout_following.follow(control, group, number, progress, until=rollout_following.rehearsed)
        nodes = await control.items(path("rollouts", group, number, "rehearsal"))
    if as_json:
        output.document({**release, "rollout_status": rollout, "rehearsal": nodes})
    else:
        rehearsals.show(nodes, limit)
    rehearsals.check(rollout, nodes)
    if not as_json:
        output.say(f"release {number} of group {group} has passed: {rollout_views.onward(rollout)}", style="green")


@click.command()
@click.argument("group", type=options.NAME, default="default")
@options.release_options
@undoing.data_option
@options.yes_option
@options.json_option
@options.asynchronous
async def rollback(
    group: str,
    data: bool,
    yes: bool,
    plan: bool,
    allowed: Json,
    rollout: Json,
    reason: str,
    waited: options.ReleaseWait | None,
    as_json: bool,
) -> None:
    """Roll GROUP (default) back to its last release that some node ran and on which none failed.

    What that changes is shown first. A second rollback goes further back. To a release of your choice:
    `skerry release create --rollback-to N`. With --data, rows that were written since are gone, and you are asked.
    """
    body = {"group": group, "reason": reason, "rollback": True, **allowed, **rollout}
    if data:
        body["data"] = True
    async with options.client() as control:
        planned = await control.post(path("releases"), body, plan="true")
        if not as_json:
            releasing.show(planned, planned=True)
        elif plan:
            output.document(planned)
        if not plan:
            if data and planned["undo"]["back"]:
                nodes = counted(planned["undo"]["back"], "node")
                question = f"Roll group {group} back to release {planned['rollback_to']}, and the data of {nodes}?"
                options.confirm(question, yes)
            # Exactly what was shown, or nothing.
            release = await control.post(path("releases"), {**body, "plan_digest": planned["plan_digest"]})
            await releasing.finish(control, release, waited, shown=True, as_json=as_json)


def _version(text: str) -> tuple[str, int]:
    """Return the name and version in `NAME=VERSION` or, as it is printed, `NAME@VERSION`."""
    name, _, version = text.replace("@", "=", 1).partition("=")
    options.NAME.convert(name, None, None)
    if not version.isdecimal() or not version.isascii():
        raise click.UsageError(f"--set {text}: it must be NAME=VERSION, and the version a number")
    return name, int(version)
