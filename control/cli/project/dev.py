"""`skerry dev`: a project on an edge of its own, which follows the project's files."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import click

from control.cli.project import project_files, toolchains
from control.cli.project.followed_files import FollowedFiles
from control.cli.project.local_edge import PORTS, EdgeEnded, LocalEdge, free_address
from control.cli.support import ending, options, output
from control.cli.support.client import Failure

SECRETS = "secrets.toml"
"""The file in the edge's folder that has secrets, where no other one is named."""


@click.command()
@click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", metavar="[FOLDER]"
)
@click.option(
    "--listen",
    help=f"HOST:PORT to serve the functions on; without it the first of 127.0.0.1:{PORTS[0]}, {PORTS[1]}, … that is "
    "free.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the edge's files, its database among them, in this folder; without it they go at the end.",
)
@click.option(
    "--secrets",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with the values of its secrets, as a node has one; only you may be able to read it.",
)
@options.asynchronous
async def command(folder: Path, listen: str | None, state: Path | None, secrets: Path | None) -> None:
    """Serve the functions of the project in FOLDER (this one) here, and follow its files.

    They are built and swapped in at each change; where a build or a release fails, the version before serves on. Each
    call is shown with its time and what the function logged. Where a schema file that was applied has changed, the
    database is made again. The file of secrets is followed, too. Needs no control; Ctrl-C ends it.
    """
    ending.end_once()
    found = project_files.read(folder)
    beside = [secrets] if secrets is not None else [state / SECRETS] if state is not None else []
    files = FollowedFiles(found.folders(), beside)
    if state is not None:
        # Before its file of secrets is looked for.
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if state is None:
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skerry-dev-")))
        if listen is None:
            listen = stack.enter_context(free_address())
        try:
            async with LocalEdge(state.absolute(), listen, secrets) as edge, asyncio.TaskGroup() as group:
                group.create_task(files.watch())
                group.create_task(edge.watch())
                await _follow(folder, edge, files, {path.absolute() for path in beside})
        except ExceptionGroup as several:
            raise several.exceptions[0] from None


async def _follow(folder: Path, edge: LocalEdge, files: FollowedFiles, secrets: set[Path]) -> None:
    """Build and release the project, again after each change, until cancelled. Files of `secrets` need no build.

    Raises: EdgeEnded, when the edge ends by itself.
    """
    built: set[str] = set()
    while True:
        different = await files.different()
        try:
            if different:
                found = project_files.read(folder)
                built -= {source.name for source in found.concerned(different - secrets)}
                for source in found.functions:
                    if source.name not in built:
                        took = await toolchains.build(source)
                        built.add(source.name)
                        output.say(f"{source.name}: built in {output.span(took)}")
                await edge.release(found)
        except EdgeEnded:
            raise
        except Failure as failed:
            # The next change of a file may cure it.
            output.failure(failed, as_json=False)
            if edge.serves:
                output.note("  the version before serves on")
        await files.changed()
