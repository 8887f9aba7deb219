"""`skerry schema`: the numbered changes of the nodes' database."""

from pathlib import Path

import click

from control.cli.support import options, output, releasing
from control.cli.support.client import Client, Json, RequestRefused, path
from control.cli.support.lists import ago, list_command
from control.protocol.command_line import CommandGroup


@click.group(cls=CommandGroup)
def command() -> None:
    """Schema changes: numbered SQL that every node applies in order."""


def read_sql(file: Path) -> str:
    """Return the file's text.

    Raises: UsageError, when it isn't UTF-8.
    """
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file} isn't UTF-8: {error}") from error


async def _register(control: Client, where: str, body: Json, waited: options.ReleaseWait | None, as_json: bool) -> None:
    """Register the change in `body`, and follow the release that it requests, if any."""
    change = await control.post(where, body)
    release = change.pop("release", None)
    if not as_json:
        output.say(f"{releasing.named_change(change)} is registered")
        releasing.show_findings(change)
    done: Json = {"change": change, "release": release}
    if release is not None:
        await releasing.finish(control, release, waited, part_of=done, as_json=as_json)
    elif as_json:
        output.document(done)


def _show_plan(found: Json, as_json: bool) -> None:
    releasing.show_plan(found, f"{releasing.named_change(found['change'])} would be registered", as_json=as_json)
    if not as_json:
        releasing.show_findings(found["change"])


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="What it is called; the file's name without it.")
@click.option("--number", type=click.IntRange(min=1), help="The number it must get: refused if another came first.")
@click.option("--no-release", is_flag=True, help="Only register it: no node applies it yet.")
@options.group_option
@options.release_options
@options.json_option
@options.asynchronous
async def add(
    file: Path,
    name: str | None,
    number: int | None,
    no_release: bool,
    plan: bool,
    group: str,
    allowed: Json,
    rollout: Json,
    reason: str,
    waited: options.ReleaseWait | None,
    as_json: bool,
) -> None:
    """Register the SQL in FILE as the next schema change, and release it to a group.

    Control tries it on a database with all changes before it, so SQL that can't apply is refused here.
    """
    body: Json = {"name": name or file.stem, "sql": read_sql(file)}
    if number is not None:
        body["number"] = number
    async with options.client() as control:
        if plan:
            to = None if no_release else group
            _show_plan(await releasing.plan(control, path("schema-changes"), body, to, rollout), as_json)
            return
        if not no_release:
            await releasing.floor_of(control, group)
            body["release"] = {"group": group, "reason": reason, **allowed, **rollout}
        await _register(control, path("schema-changes"), body, waited, as_json)


@command.command()
@click.argument("number", type=click.IntRange(min=1))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--no-release", is_flag=True, help="Only register it: nodes get it with the next release.")
@options.group_option
@options.release_options
@options.json_option
@options.asynchronous
async def amend(
    number: int,
    file: Path,
    no_release: bool,
    plan: bool,
    group: str,
    allowed: Json,
    rollout: Json,
    reason: str,
    waited: options.ReleaseWait | None,
    as_json: bool,
) -> None:
    """Give change NUMBER new SQL that leads to the same schema, for the nodes that could not apply the old one."""
    async with options.client() as control:
        # A revision alone makes no node too old.
        new: Json = {"sql": read_sql(file), **{name: True for name in allowed if name != "allow_unfit"}}
        where = path("schema-changes", number, "revisions")
        if plan:
            to = None if no_release else group
            _show_plan(await releasing.plan(control, where, new, to, rollout), as_json)
            return
        if not no_release:
            await releasing.floor_of(control, group)
            new["release"] = {
                "group": group,
                "reason": reason or f"schema change {number} amended",
                **allowed,
                **rollout,
            }
        await _register(control, where, new, waited, as_json)


@command.command()
@click.argument("number", type=click.IntRange(min=1))
@click.option(
    "--output", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the draft here; stdout without it."
)
@click.option("--add", "register", is_flag=True, help="Register the draft, if all of the change can be reversed.")
@options.json_option
@options.asynchronous
async def withdraw(number: int, file: Path | None, register: bool, as_json: bool) -> int:
    """Withdraw change NUMBER, the last one: its number stays, and it does nothing.

    Where a plan has contained it, nodes may have it, and it can't be withdrawn. Then the change that reverses it is
    drafted, for you to look at and `schema add`, and the exit code is 3. What can't be reversed is said.
    """
    async with options.client() as control:
        try:
            change = await control.post(path("schema-changes", number, "withdraw"))
        except RequestRefused as refused:
            if refused.code != "schema_planned":
                raise
            draft = await control.get(path("schema-changes", number, "reversal"))
        else:
            line = f"schema change {number} ({change['name']}) is withdrawn: nodes get it as one without effect"
            output.answered({"withdrawn": change, "draft": None, "added": None}, line, as_json=as_json)
            return 0
        added = None
        if register and draft["sql"] and not draft["kept"]:
            added = await control.post(path("schema-changes"), {"name": draft["name"], "sql": draft["sql"]})
    if file is not None and draft["sql"]:
        file.write_text(draft["sql"], "utf-8")
    if as_json:
        output.document({"withdrawn": None, "draft": draft, "added": added})
    else:
        _show_draft(draft, added, file)
    return 0 if added else 3


def _show_draft(draft: Json, added: Json | None, file: Path | None) -> None:
    """Print the draft, unless it is in `file`; what isn't SQL goes to stderr, so that stdout can be redirected."""
    output.note(f"schema change {draft['number']} is in plans already: it can't be withdrawn, only reversed")
    for kept in draft["kept"]:
        output.note(f"  not reversed, {kept['message']}: {kept['statement']}")
    if not draft["sql"]:
        output.note("there is nothing in it that can be reversed")
    elif added is not None:
        output.say(f"schema change {added['number']} ({added['name']}) is registered: a release brings it to nodes")
    elif file is not None:
        output.note(
            f"{file} reverses {'the rest of ' if draft['kept'] else ''}it: look at it, then `skerry schema add`"
        )
    else:
        output.note("this reverses the rest of it:" if draft["kept"] else "this reverses it:")
        output.say(draft["sql"].rstrip())


def _nodes(change: Json) -> str:
    """Return how many nodes have applied the change, with the revision if it isn't the newest."""
    nodes = {item["revision"]: item["nodes"] for item in change.get("nodes", [])}
    newest = nodes.pop(change["revision"], 0)
    return ", ".join([str(newest), *(f"{count} with revision {revision}" for revision, count in nodes.items())])


command.add_command(
    list_command(
        "schema-changes",
        "List the schema changes.",
        {
            "NUMBER": "number",
            "NAME": lambda change: f"{change['name']} (withdrawn)" if change.get("withdrawn") else change["name"],
            "REVISION": "revision",
            "NODES": _nodes,
            "CHECKSUM": lambda change: change["checksum"][:12],
            "BY": "created_by",
            "CREATED": ago("created_at"),
        },
        "no schema changes: `skerry schema add FILE` registers one",
    )
)


@command.command()
@click.argument("number", type=click.IntRange(min=1))
@options.json_option
@options.asynchronous
async def show(number: int, as_json: bool) -> None:
    """Show a schema change: its SQL and its revisions."""
    async with options.client() as control:
        change = await control.get(path("schema-changes", number))
    output.shown(change, _details, as_json=as_json)
    if as_json:
        return
    output.say(change["sql"])
    for revision in change.get("revisions", []):
        if revision["revision"] != change["revision"]:
            output.say(f"\n-- revision {revision['revision']}, {output.ago(revision['created_at'])}\n{revision['sql']}")


def _details(change: Json) -> list[tuple[str, object]]:
    return [
        ("change", f"{change['number']} {change['name']}"),
        ("revision", change["revision"]),
        ("checksum", change["checksum"]),
        ("created", f"{output.ago(change['created_at'])} by {change['created_by']}"),
        ("nodes", _nodes(change)),
        ("in plans", f"since {output.ago(planned)}" if (planned := change.get("planned_at")) else "never"),
    ]
