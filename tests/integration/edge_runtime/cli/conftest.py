"""What the tests of `skerry-edge call` share: the command, and a database for it."""

import sqlite3
from pathlib import Path

import pytest

from tests.guests.build import EXAMPLES
from tests.support.programs import Done, command


@pytest.fixture
def call(tmp_path: Path):
    """Runs the command on a module's bytes, with a cache of its own."""

    async def called(wasm: bytes, *arguments: str | Path) -> Done:
        file = tmp_path / "module.wasm"
        file.write_bytes(wasm)
        return await command("edge_runtime.cli.main", "call", file, *arguments, XDG_CACHE_HOME=str(tmp_path / "cache"))

    return called


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A file with the table of the example `visits`, which is empty."""
    file = tmp_path / "own.db"
    with sqlite3.connect(file) as opened:
        opened.executescript((EXAMPLES / "visits" / "schema.sql").read_text())
    opened.close()
    return file
