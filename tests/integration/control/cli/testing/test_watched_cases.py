"""`skerry test` while it runs: Ctrl-C ends it, and `--watch` runs the cases again."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.guests.build import guest
from tests.support.cases_project import Folder, sent
from tests.support.programs import command, until


async def test_ctrl_c_ends_all_without_a_word(tmp_path: Path, cache: Path) -> None:
    project = Folder(tmp_path, cache)
    project.function("loop", guest("loop"), "time_limit_ms = 60000")
    project.cases('[[case]]\nname = "a"\n[[case]]\nname = "b"\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", "test", str(project.path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )

    started = psutil.Process(process.pid)

    async def both_run() -> list[psutil.Process]:
        made = started.children(recursive=True)
        return made if len(made) == 3 else []

    made = await until(both_run, "both calls run")
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.read(), 30)).strip() == b"interrupted"
    assert await process.wait() == 130
    assert psutil.wait_procs(made, timeout=30)[1] == []


async def test_cases_run_again_when_a_file_changes(project: Folder, cache: Path) -> None:
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\nstatus = 201\n')
    arguments = ("-m", "control.cli", "test", str(project.path), "--watch", "--junit", str(project.path / "run.xml"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told = ""

    async def read() -> None:
        nonlocal told
        assert process.stdout is not None
        while piece := await process.stdout.read(65_536):
            told += piece.decode()

    reading = asyncio.ensure_future(read())

    async def said(text: str, times: int) -> None:
        async def there() -> bool:
            return told.count(text) >= times

        await until(there, f"{text!r} is said in {told!r}")

    try:
        await said("waiting for a change", 1)
        assert "1 failed" in told
        project.cases("[[case]]\nname =")
        await said("can't be read", 1)
        project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
        await said("1 passed", 1)
        await said("waiting for a change", 3)
        # A change of the schema is one, too.
        project.schema("CREATE TABLE other (x);")
        await said("1 passed", 2)
        assert told.count("waiting for a change") <= 4
    finally:
        process.send_signal(2)
        await asyncio.wait_for(process.wait(), 60)
        await reading
    assert process.returncode == 130


@pytest.mark.parametrize("words", [("test", "--watch"), ("dev",)], ids=" ".join)
async def test_what_can_not_be_watched_ends_it(project: Folder, words: tuple[str, ...]) -> None:
    """Also where the system has no more watches: otherwise it would wait for ever."""
    project.function("notes", guest("sql"), top='schema = "../none"')
    project.cases(f'[[case]]\nname = "a"\n{sent("SELECT 1")}\n')
    done = await command("control.cli", *words, project.path)
    assert done.status == 1, done
    assert "none can't be noticed: " in done.err
    assert "Traceback" not in done.err
