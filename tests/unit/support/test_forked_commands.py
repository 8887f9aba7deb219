"""Commands that are forked are processes of their own, as those are that are started by exec."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forked_commands

MODULE = "edge_runtime.cli.main"


async def run(*arguments: str, limit: float = 60.0, folder: Path = Path("/"), **environment: str):
    return await forked_commands.run(MODULE, arguments, environment, folder, limit)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("nothing",), ("check",), ("call", "none.wasm")])
async def test_status_and_words_are_those_of_a_fresh_process(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    forked = await run(*arguments, folder=tmp_path, **environment)
    fresh = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", MODULE, *arguments],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert forked == (fresh.returncode, fresh.stdout, fresh.stderr)


async def test_a_command_that_takes_too_long_is_killed_and_the_next_ones_answer(tmp_path: Path) -> None:
    pipe = tmp_path / "body"
    os.mkfifo(pipe)
    with pytest.raises(TimeoutError):
        # It waits for bytes that never come.
        await run("call", __file__, "--body-file", str(pipe), limit=0.2)
    done = await asyncio.gather(*(run("--version") for _ in range(3)))
    assert [status for status, _, _ in done] == [0, 0, 0]
    # Nobody is left who would read.
    async with asyncio.timeout(60):
        while True:
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                break
            await asyncio.sleep(0.02)
