"""`skerry test` while it runs: Ctrl-C ends it, and `--watch` runs the cases again."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from control.cli.project import run_cases
from control.cli.project.followed_files import FollowedFiles
from tests.guests.build import guest
from tests.support.cases_project import Folder, sent
from tests.support.deadlines import scaled
from tests.support.programs import command, until


async def started(project: Folder, cache: Path, *more: str) -> asyncio.subprocess.Process:
    """`skerry test` of the project, with processes of its own for Ctrl-C."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", "test", str(project.path), *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )


async def two_calls(folder: Path, cache: Path) -> tuple[asyncio.subprocess.Process, list[psutil.Process]]:
    """`skerry test` while it makes two calls that don't end, and its processes."""
    project = Folder(folder, cache)
    project.function("loop", guest("loop"), "time_limit_ms = 60000")
    project.cases('[[case]]\nname = "a"\n[[case]]\nname = "b"\n')
    process = await started(project, cache)
    ours = psutil.Process(process.pid)

    async def both_run() -> list[psutil.Process]:
        made = ours.children(recursive=True)
        return made if len(made) == 3 else []

    return process, await until(both_run, "both calls run")


@pytest.mark.usefixtures("programs_by_exec")
async def test_ctrl_c_ends_all_without_a_word(tmp_path: Path, cache: Path) -> None:
    process, made = await two_calls(tmp_path, cache)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.read(), scaled(30))).strip() == b"interrupted"
    assert await process.wait() == 130
    assert psutil.wait_procs(made, timeout=scaled(30))[1] == []


@pytest.mark.usefixtures("programs_by_exec")
async def test_a_process_that_is_killed_ends_the_run(tmp_path: Path, cache: Path) -> None:
    """As by a system that is short of memory: what wasn't made isn't taken as passed."""
    process, _ = await two_calls(tmp_path, cache)
    [maker] = psutil.Process(process.pid).children()
    maker.kill()
    assert process.stdout is not None
    told = (await asyncio.wait_for(process.stdout.read(), scaled(60))).decode()
    assert "was ended by SIGKILL, and 2 of 2 weren't made" in " ".join(told.split())
    assert await process.wait() == 1


class Watching:
    """A running `skerry test --watch`, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.told = ""

    async def read(self) -> None:
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(65_536):
            self.told += piece.decode()

    async def said(self, text: str, times: int) -> None:
        async def there() -> bool:
            return self.told.count(text) >= times

        await until(there, f"{text!r} is said in {self.told!r}")


@asynccontextmanager
async def watching(project: Folder, cache: Path, *more: str) -> AsyncIterator[Watching]:
    """Run it until the block ends, which ends it by Ctrl-C."""
    process = await started(project, cache, "--watch", *more)
    made = Watching(process)
    reading = asyncio.ensure_future(made.read())
    try:
        yield made
    finally:
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), scaled(60))
        await reading
    assert process.returncode == 130


async def test_cases_run_again_when_a_file_changes(project: Folder, cache: Path) -> None:
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\nstatus = 201\n')
    async with watching(project, cache) as run:
        await run.said("waiting for a change", 1)
        assert "1 failed" in run.told
        project.cases("[[case]]\nname =")
        await run.said("can't be read", 1)
        project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
        await run.said("1 passed", 1)
        await run.said("waiting for a change", 3)
        # A change of the schema is one, too.
        project.schema("CREATE TABLE other (x);")
        await run.said("1 passed", 2)


async def test_its_own_file_of_results_starts_no_other_run(
    project: Folder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    project.cases('[[case]]\nname = "a"\n')
    junit = project.path / "run.xml"
    steps: list[str] = []
    run = run_cases._run

    class Steps(FollowedFiles):
        async def different(self) -> set[Path]:
            found = await super().different()
            steps.append("its own" if found == {junit} else f"looks: {len(found)}")
            return found

        async def changed(self) -> None:
            steps.append("waits")
            await super().changed()

    async def counted(*arguments: Any) -> int:
        steps.append("runs")
        return await run(*arguments)

    monkeypatch.setattr(run_cases, "_run", counted)
    files = Steps([project.path])
    # Named in another way than it is found.
    named = project.path / "tests" / ".." / junit.name

    async def waits_again() -> bool:
        if "waits" in steps and "its own" not in steps:
            # Whenever the watch began.
            junit.write_text(f"{len(junit.read_bytes())}")
        return "its own" in steps and steps[-1] == "waits"

    tasks = [
        asyncio.ensure_future(files.watch()),
        asyncio.ensure_future(run_cases._again(project.path, "", named, files)),
    ]
    try:
        await until(waits_again, "the file of results was noticed")
        assert steps.count("runs") == 1, steps
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_has_changed_is_built_again_and_nothing_else(project: Folder, cache: Path, tmp_path: Path) -> None:
    project.function("notes", b"", top='schema = "schema"\nbuild = "cp source function.wasm"')
    source = project.path / "source"
    source.write_bytes(guest("sql"))
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
    async with watching(project, cache) as run:
        await run.said("1 passed", 1)
        project.schema("CREATE TABLE other (x);")
        await run.said("1 passed", 2)
        assert run.told.count("notes: built in") == 1
        # In one step: it might look while there is half a file, and build once more for the other half.
        other = tmp_path / "other"
        other.write_bytes(guest("echo"))
        other.rename(source)
        await run.said("1 passed", 3)
        assert run.told.count("notes: built in") == 2


@pytest.mark.parametrize("words", [("test", "--watch"), ("dev",)], ids=" ".join)
async def test_what_can_not_be_watched_ends_it(project: Folder, words: tuple[str, ...]) -> None:
    """Also where the system has no more watches: otherwise it would wait for ever."""
    project.function("notes", guest("sql"), top='schema = "../none"')
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
    done = await command("control.cli", *words, project.path)
    assert done.status == 1, done
    assert "none can't be noticed: " in done.err
    assert "make the folder" in done.err
    assert "inotify" not in done.err, "that it isn't there is no limit's fault"
    assert "Traceback" not in done.err
