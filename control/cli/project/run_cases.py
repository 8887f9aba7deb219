"""`skerry test`: runs the test cases of a project."""

import asyncio
import time
from pathlib import Path

import click

from control.cli.project import case_calls, case_files, case_report, project_files, toolchains
from control.cli.project.case_files import TestCase
from control.cli.project.case_report import Ended
from control.cli.project.followed_files import FollowedFiles
from control.cli.project.project_files import TESTS, Project
from control.cli.support import options, output
from control.cli.support.client import Failure
from control.protocol.counts import counted


class NoCases(Failure):
    """There are no cases to run."""

    exit_code = 2


@click.command()
@options.folder_argument
@click.option("-k", "word", metavar="WORD", default="", help="Only cases with this in their file, function or name.")
@click.option("--watch", is_flag=True, help="Run them again whenever a file of the project changes, until Ctrl-C.")
@click.option(
    "--junit", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the run as JUnit's XML."
)
@options.asynchronous
async def command(folder: Path, word: str, watch: bool, junit: Path | None) -> int:
    """Run the test cases of the project in FOLDER (this one): the files tests/*.toml of it and of its functions.

    The functions are built. Each case is one call, made as a node would, on a new database that has the project's
    schema; docs/functions.md says what a case can ask for. Exits with 0 if all cases pass, 1 if one fails, 2 if a file
    is wrong or there is no case.
    """
    if not watch:
        built: set[str] = set()
        return await _run(project_files.read(folder), word, junit, built)
    files = FollowedFiles(project_files.read(folder).folders())
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(files.watch())
            await _again(folder, word, junit, files)
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return 0


async def _again(folder: Path, word: str, junit: Path | None, files: FollowedFiles) -> None:
    """Run the cases after each change until cancelled."""
    built: set[str] = set()
    while True:
        # Files that the run itself writes don't start another run.
        different = {path for path in await files.different() if junit is None or path.resolve() != junit.resolve()}
        if different:
            try:
                found = project_files.read(folder)
                built -= {source.name for source in found.concerned(different)}
                await _run(found, word, junit, built)
            except Failure as failed:
                output.failure(failed, as_json=False)
            output.note("  waiting for a change")
        await files.changed()


async def _run(found: Project, word: str, junit: Path | None, built: set[str]) -> int:
    """Build what isn't in `built`, run the cases, and return the exit status. Raises: Failure."""
    cases = case_files.find(found)
    if not cases:
        raise NoCases(
            f"{found.folder} has no test cases",
            cure=f"write some into {found.folder / TESTS}/NAME.toml; docs/functions.md says how",
        )
    chosen = [case for case in cases if word.lower() in f"{case.title} {case.function.name}".lower()]
    if not chosen:
        raise NoCases(f"none of {counted(len(cases), 'case')} has {word!r} in its file, function or name")
    for source in found.functions:
        if source.name not in built and any(case.function == source for case in chosen):
            took = await toolchains.build(source)
            built.add(source.name)
            if source.build:
                output.say(f"{source.name}: built in {output.span(took)}")
    began = time.monotonic()
    run = await _made(found, chosen)
    seconds = time.monotonic() - began
    failed = sum(bool(ended.different) for ended in run)
    passed = f"{len(run) - failed} passed, " if failed < len(run) else ""
    told = f"{passed}{failed} failed" if failed else f"{len(run)} passed"
    output.say(f"{told} in {output.span(seconds)}", style="red" if failed else "green")
    if junit is not None:
        try:
            case_report.write(junit, run, seconds)
        except OSError as error:
            raise Failure(f"{junit} can't be written: {error.strerror}") from None
    return 1 if failed else 0


async def _made(found: Project, cases: list[TestCase]) -> list[Ended]:
    """Make the calls, and show their results in the order of the cases. Raises: Failure, also for a wrong schema."""
    waiting: dict[int, Ended] = {}
    run: list[Ended] = []
    async for done in case_calls.made(cases, found.changes()):
        if done.part == "schema":
            raise Failure(f"the schema can't be applied: {done.result.message}", code=done.result.code)
        case = cases[done.number]
        waiting[done.number] = Ended(case, done, case_report.compared(case, done))
        while (ended := waiting.pop(len(run), None)) is not None:
            run.append(ended)
            _show(ended)
    return run


def _show(ended: Ended) -> None:
    result = ended.done.result
    if not ended.different:
        output.say(f"ok    {ended.case.title}  {result.seconds * 1000:.0f} ms")
        return
    output.say(f"FAIL  {ended.case.title}", style="red")
    for line in ended.different:
        style = {"-": "red", "+": "green"}.get(line[2:3]) if line.startswith("  ") else None
        output.say(f"      {line}", style=style)
    for note in result.notes:
        output.say(f"      note: {note}", style="yellow")
    for line in result.log.decode("utf-8", "replace").splitlines():
        output.say(f"      | {output.logged(line)}", style="dim")
