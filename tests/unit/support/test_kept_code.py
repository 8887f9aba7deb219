"""What LLVM made once is taken again in tests, by nodes and commands, where nothing else is asked for."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.aot_cache import FOLDER
from tests.guests.build import guest
from tests.support import forked_programs
from tests.support.edge import node


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """The file that has the code of the programs which this test starts."""
    file = tmp_path / "code"
    with forked_programs.used(str(file)):
        yield file


async def compiled(state: Path) -> bytes:
    """The code that a new node makes of a function, which answers."""
    async with node(state) as edge:
        await edge.release({"echo": guest("echo")})
        assert (await edge.call("echo", b"well"))[::2] == (200, b"well")
        [made] = (state / FOLDER).glob("*.so")
        return made.read_bytes()


async def test_a_node_takes_what_another_one_made(kept: Path, tmp_path: Path) -> None:
    code = await compiled(tmp_path / "one")
    before = kept.read_bytes()
    assert code in before
    assert await compiled(tmp_path / "two") == code
    assert kept.read_bytes() == before


async def test_damaged_code_is_not_taken(kept: Path, tmp_path: Path) -> None:
    code = await compiled(tmp_path / "one")
    before = kept.read_bytes()
    kept.write_bytes(before.replace(code, code[:-1] + bytes([code[-1] ^ 1])))
    assert await compiled(tmp_path / "two") == code
    assert code in kept.read_bytes()[len(before) :]


async def test_a_test_of_compilation_has_the_real_one(kept: Path, tmp_path: Path, real_compilation: None) -> None:
    await compiled(tmp_path / "one")
    assert not kept.exists() or kept.read_bytes() == b""


def test_a_command_takes_it_too(kept: Path, tmp_path: Path) -> None:
    module = tmp_path / "echo.wasm"
    module.write_bytes(guest("echo"))
    seen = []
    for cache in ("one", "two"):
        command = [sys.executable, "-m", "edge_runtime.cli.main", "call", str(module), "--body", "well"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / cache)}
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        assert done.stdout.strip().endswith(b"well")
        [made] = (tmp_path / cache).rglob("*.so")
        seen.append((made.read_bytes(), kept.read_bytes()))
    assert seen[0] == seen[1]
