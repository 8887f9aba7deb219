"""JavaScript's engine, compiled: that takes a minute, so a machine does it once for all tests."""

import tempfile
from pathlib import Path

from control.cli.project import toolchains
from control.cli.project.authoring import LANGUAGES
from edge_runtime.aot_cache import FOLDER, copy_engines, users_folder
from tests.support import projects
from tests.support.programs import command
from tests.support.up import ROOT


async def give_engine(state: Path) -> None:
    """A node with this state finds the engine compiled, unless there is no esbuild here."""
    if toolchains.missing(LANGUAGES["ts"], ROOT):
        return
    with tempfile.TemporaryDirectory() as folder:
        await projects.made("ts", Path(folder))
        tested = await command("control.cli", "test", folder, limit=projects.COMPILERS)
    assert tested.status == 0, tested
    copy_engines(users_folder(), state / FOLDER)
