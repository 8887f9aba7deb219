"""`skerry function`: functions and their versions."""

import hashlib
import tomllib
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import orjson
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from control import manifest_rules
from control.cli.project import authoring, project_files, project_push, toolchains
from control.cli.project.project_push import ProjectPush, Uploaded
from control.cli.support import options, output, releasing
from control.cli.support.client import Client, Json, path
from control.cli.support.lists import ago, list_command
from control.protocol.command_line import CommandGroup, DurationType
from control.protocol.manifest import Manifest, unfit

FILE = click.Path(exists=True, dir_okay=False)


@click.group(cls=CommandGroup)
def command() -> None:
    """Functions and their versions."""


command.add_command(authoring.new)
command.add_command(authoring.build)
command.add_command(authoring.schema)


@command.command()
@click.argument(
    "what",
    nargs=-1,
    metavar="[FOLDER] | NAME FILE",
    # As a text type it would have no completion.
    shell_complete=click.Path(path_type=Path).shell_complete,
)
@click.option(
    "--manifest",
    "manifest_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The manifest, TOML or JSON; the options below win over it.",
)
@click.option("--sql", type=click.Choice(["none", "read", "write"]), help="What the function may do in the database.")
@click.option("--config", type=options.PAIR, multiple=True, metavar="KEY=VALUE", help="An environment variable for it.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="A value that each node has in its own file.")
@click.option("--http", "hosts", multiple=True, metavar="HOST", help="A host that the function may send requests to.")
@click.option(
    "--http-method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="A method of those requests; without it, GET and HEAD.",
)
@click.option(
    "--route",
    metavar="'METHOD PATH'",
    help="A path of the node that leads to the function: 'GET /orders/{id}'; for a host, 'GET shop.example/{id}'.",
)
@click.option(
    "--time-limit", type=DurationType(of="ms", whole=True, plain=True), help="How long a call may take: 500ms, 5s."
)
@click.option("--memory-pages", type=int, metavar="N", help="Pages of 64 KiB that a call may use.")
@click.option("--response-limit", type=int, metavar="BYTES", help="Bytes that a response may have.")
@click.option("--no-release", is_flag=True, help="Only upload: no node gets it yet.")
@options.schema_option
@options.group_option
@options.release_options
@options.json_option
@options.asynchronous
async def push(
    what: tuple[str, ...],
    manifest_file: Path | None,
    sql: str | None,
    config: tuple[tuple[str, str], ...],
    secrets: tuple[str, ...],
    hosts: tuple[str, ...],
    methods: tuple[str, ...],
    route: str | None,
    time_limit: int | None,
    memory_pages: int | None,
    response_limit: int | None,
    no_release: bool,
    schema: int | None,
    plan: bool,
    group: str,
    allowed: Json,
    rollout: Json,
    reason: str,
    waited: options.ReleaseWait | None,
    as_json: bool,
) -> None:
    """Upload the next version of a function, or of each of a project, and release them to a group.

    What is uploaded is the project in FOLDER (this one), or the module FILE as function NAME. A project is built; those
    of its schema files that control hasn't are registered, unless --schema says which schema is meant; and one release
    has them all. Other functions of the group's release stay; what the release changes is shown. With --plan modules
    are uploaded, too, because control has to look at them; nothing is made of them.
    """
    chosen = {"sql": sql, "time_limit_ms": time_limit, "memory_pages": memory_pages, "response_limit": response_limit}
    given = OptionsOfManifest(chosen, config, secrets, hosts, methods, route)
    what = what or (".",)
    found, modules = _modules(what, manifest_file)
    if len(modules) > 1 and given.any():
        raise click.UsageError(f"{what[0]} has several functions: put what they may into their function.toml")
    modules = [(name, file, given.over(manifest)) for name, file, manifest in modules]
    for _, _, manifest in modules:
        check_manifest(manifest)
    async with options.client() as control:
        # Before builds, which may take long, and before anything is uploaded.
        floor = None if no_release else await releasing.floor_of(control, group)
        own = project_push.ProjectSchema([])
        if found is not None and schema is None:
            own = await project_push.compared(control, found)
        for source in found.functions if found is not None else ():
            took = await toolchains.build(source)
            if not as_json:
                output.say(f"{source.module} is built in {output.span(took)}")
        uploaded = [Uploaded(name, await upload(control, file, quiet=as_json), m) for name, file, m in modules]
        push_ = ProjectPush(control, found, own, uploaded)
        if plan or push_.has_several or (floor is not None and floor < own.known):
            planned = await push_.plan(None if no_release else group, schema, rollout)
            schema = planned.schema
            if plan:
                output.document(planned.document()) if as_json else planned.show()
                return
            planned.refuse(allowed)
        following: Json | None = None
        if not no_release:
            following = {"group": group, "reason": reason, **allowed, **rollout}
            if schema is not None:
                following["schema"] = schema
        done = await push_.make(following, quiet=as_json)
        if done["release"] is not None:
            await releasing.finish(control, done["release"], waited, part_of=done, as_json=as_json)
        elif as_json:
            output.document(done)


class OptionsOfManifest(NamedTuple):
    """The options of a push that override the manifest."""

    chosen: Json
    """Values of fields; None if an option isn't given."""
    config: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]
    hosts: tuple[str, ...]
    methods: tuple[str, ...]
    route: str | None

    def any(self) -> bool:
        """Return whether any option is given."""
        return any(value is not None for value in self.chosen.values()) or any(self[1:])

    def over(self, manifest: Json) -> Json:
        """Return the manifest with the options applied."""
        manifest = manifest | {field: value for field, value in self.chosen.items() if value is not None}
        if self.config:
            manifest["config"] = {**manifest.get("config", {}), **dict(self.config)}
        if self.secrets:
            manifest["secrets"] = list(self.secrets)
        if self.hosts or self.methods:
            given = {"hosts": list(self.hosts), "methods": [method.upper() for method in self.methods]}
            manifest["http"] = {**(manifest.get("http") or {}), **{key: value for key, value in given.items() if value}}
        if self.route is not None:
            manifest["route"] = read_route(self.route)
        return manifest


def _modules(
    what: tuple[str, ...], manifest: Path | None
) -> tuple[project_files.Project | None, list[tuple[str, Path, Json]]]:
    """Return the project, if there is one, and name, module and manifest of each function to push.

    Raises: UsageError, when the arguments are neither FOLDER nor NAME FILE; Failure, when the project can't be read.
    """
    if len(what) == 1:
        if manifest is not None:
            raise click.UsageError("a project's manifest is in its function.toml: --manifest goes with NAME FILE")
        if not Path(what[0]).is_dir():
            raise click.UsageError(
                f"{what[0]} is no folder: push takes a project's FOLDER (`skerry function new` makes one), or NAME FILE"
            )
        found = project_files.read(Path(what[0]))
        return found, [(source.name, source.module, source.manifest) for source in found.functions]
    if len(what) != 2:
        raise click.UsageError("push takes a project's FOLDER, or NAME FILE")
    name, file = options.NAME.convert(what[0], None, None), Path(str(FILE.convert(what[1], None, None)))
    return None, [(name, file, read_manifest(manifest))]


def read_manifest(file: Path | None) -> Json:
    """Return a manifest file's content: JSON if its name ends in .json, else TOML; {} for no file.

    Raises: UsageError, when the file can't be read.
    """
    if file is None:
        return {}
    try:
        content = file.read_bytes()
        value = orjson.loads(content) if file.suffix == ".json" else tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"the manifest {file} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"the manifest {file} is no table of names and values")
    return value


def read_route(text: str) -> Json:
    """Return the manifest's `route` for `GET|PUT /path`, or for only a path, which means every method.

    The path may be preceded by hosts, separated by commas.
    """
    before, _, target = text.rpartition(" ")
    methods = [method.upper() for method in before.replace("|", " ").replace(",", " ").split()]
    hosts, slash, rest = target.partition("/")
    route: Json = {"path": slash + rest if slash else target}
    if methods:
        route["methods"] = methods
    if hosts and slash:
        route["hosts"] = hosts.split(",")
    return route


def check_manifest(manifest: Json) -> None:
    """Check a manifest as control would, before anything is uploaded.

    Raises: UsageError, when control would refuse it.
    """
    try:
        manifest_rules.check(msgspec.convert(manifest, Manifest))
    except msgspec.ValidationError as error:
        raise click.UsageError(f"the manifest isn't valid: {unfit(error, Manifest)}") from error
    except manifest_rules.ManifestUnfit as error:
        raise click.UsageError(f"the manifest isn't valid: {error}") from error


async def upload(control: Client, file: Path, *, quiet: bool) -> str:
    """Upload the file unless the artifact store has it; return its SHA-256, 64 hex digits.

    Raises: Failure, when control refuses the file or can't be reached.
    """
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if await control.has(path("artifacts", sha256)):
        return sha256
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=output.console(error=True),
        transient=True,
        disable=quiet or not output.console(error=True).is_terminal,
    )
    with bar:
        task = bar.add_task(f"uploading {file.name}", total=file.stat().st_size)
        await control.upload(path("artifacts", sha256), file, lambda count: bar.advance(task, count))
    return sha256


command.add_command(
    list_command(
        "functions",
        "List the functions.",
        {
            "FUNCTION": "name",
            "LAST VERSION": "last_version",
            "VERSIONS": "versions",
            "GROUPS": lambda function: function.get("groups"),
            "CREATED": ago("created_at"),
        },
        "no functions: `skerry function push NAME FILE` uploads one",
    )
)


@command.command()
@click.argument("named", type=options.VERSIONED, metavar="NAME[@VERSION]")
@click.argument("version", type=click.IntRange(min=1), required=False)
@options.json_option
@options.asynchronous
async def show(named: tuple[str, int | None], version: int | None, as_json: bool) -> None:
    """Show a function's versions, or one of them with its manifest."""
    name, version = options.one_version(named, version)
    async with options.client() as control:
        if version is None:
            versions = await control.items(path("functions", name, "versions"))
            output.listed(versions, VERSIONS, f"{name} has no versions", as_json=as_json)
        else:
            found = await control.get(path("functions", name, "versions", version))
            output.shown(found, _details, as_json=as_json)


VERSIONS: output.Columns = {
    "VERSION": "version",
    "SHA256": lambda version: version["sha256"][:12],
    "SIZE": lambda version: output.size(version["size"]),
    "GRANTS": lambda version: "; ".join(
        f"{grant} {text}" for grant, text in manifest_rules.grants(version["manifest"]).items()
    ),
    "BY": "created_by",
    "CREATED": ago("created_at"),
}
"""The columns of the list of a function's versions."""


def _details(version: Json) -> list[tuple[str, object]]:
    return [
        ("function", f"{version['name']}@{version['version']}"),
        ("sha256", version["sha256"]),
        ("size", output.size(version["size"])),
        ("created", f"{output.ago(version['created_at'])} by {version['created_by']}"),
        *((f"  {key}", _shown(key, value)) for key, value in version["manifest"].items()),
    ]


def _shown(field: str, value: object) -> object:
    if field in manifest_rules.GRANTS:
        return manifest_rules.shown(field, value)
    return orjson.dumps(value).decode() if isinstance(value, dict) else value


@command.command()
@click.argument("named", type=options.VERSIONED, metavar="NAME[@VERSION]")
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--release", is_flag=True, help="Take it out of the groups' releases first, by a new release of each.")
@click.option("--force", is_flag=True, help="Also where a rollback would need it.")
@options.plan_option
@options.yes_option
@options.json_option
@options.asynchronous
async def delete(
    named: tuple[str, int | None],
    version: int | None,
    release: bool,
    force: bool,
    plan: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete one version of a function, or all of them; a version's number is never used again."""
    name, version = options.one_version(named, version)
    what = f"all versions of {name}" if version is None else f"{name}@{version}"
    options.confirm(f"Delete {what}?", yes or plan)
    where = path("functions", name) if version is None else path("functions", name, "versions", version)
    async with options.client() as control:
        # Only on request: an older control refuses a parameter that it doesn't know.
        wished = {"release": release, "force": force, "plan": plan}
        found = await control.delete(where, **{name: "true" for name, wish in wished.items() if wish})
    if plan:
        releasing.show_plan(found, f"{what}: would be deleted", as_json=as_json)
        return
    output.answered({"name": name, "version": version, "deleted": True}, f"{what}: deleted", as_json=as_json)
